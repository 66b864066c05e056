// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The accelerator: forwards frames of flows that a worker has entered into its tables, in the driver, and passes all others on.
 *
 * Which backend a flow has was decided by a worker, who enters the flow for a while; until then, and again when that while is
 * over, its frames take the usual way, so that the worker's flow table stays the only truth. Where more new flows come than
 * workers shall look at, those beyond are placed here as a worker without room in its flow table does: where Maglev says, and
 * not remembered. Nothing is dropped, answered or learned: what is not known in all points is passed (XDP_PASS) as it came.
 *
 * There is no arithmetic with pointers into frames but by constants: for that the kernel wants CAP_PERFMON, by which much else
 * could be read.
 *
 * src/accel/layout.rs has the same layouts. Compiled by build.sh; the object is committed and compared.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define be16(x) ((__u16)__builtin_bswap16(x))

/* Helpers of the kernel by their numbers (linux/bpf.h, enum bpf_func_id). */
static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static __u32 (*const processor)(void) = (void *)BPF_FUNC_get_smp_processor_id;
static __u64 (*const jiffies)(void) = (void *)BPF_FUNC_jiffies64;
static __u64 (*const boottime_ns)(void) = (void *)BPF_FUNC_ktime_get_boot_ns;
static __u64 (*const frame_len)(void *ctx) = (void *)BPF_FUNC_xdp_get_buff_len;
static long (*const redirect_map)(void *map, __u64 key, __u64 flags) = (void *)BPF_FUNC_redirect_map;

/* Stand for the maps: whoever loads this puts their descriptors in place of these addresses. */
char settings SECTION("maps"), ports SECTION("maps"), strangers SECTION("maps"), flows_v4 SECTION("maps"),
	flows_v6 SECTION("maps"), backends SECTION("maps"), traffic SECTION("maps"), processors SECTION("maps"),
	devices SECTION("maps"), services SECTION("maps"), maglev SECTION("maps"), bad_sources SECTION("maps"),
	elsewhere SECTION("maps");

#define SLOTS 16384           /* backends that can be forwarded to */
#define TICK_SHIFT 26         /* as forward/flow.rs counts time: units of 2^26 ns */
#define TICK_MASK ((1u << 29) - 1)
#define SECOND 15             /* ticks */
#define AHEAD 16              /* ticks by which clocks may differ */
#define BURST_NS 50000000     /* so much of the time of workers can be saved up for new flows */
#define SILENT_NS 9500000000ull /* less time is left only when the first worker has not turned for nearly half a second */

struct settings {             /* one element, which user space has mapped */
	__u64 valid_until_ns;     /* CLOCK_BOOTTIME: from then on all is passed */
	__u64 fresh;              /* for so many ticks an entry is good */
	__u64 strangers;          /* a bit for the last six bits of each of them: most frames are of none */
	__u64 hash_key;
	__u32 mask_v4, mask_v6;   /* groups of either table, less one */
	__u64 frame_ns;           /* of a processor's time, for each frame that is left to a worker and could be placed */
	__u64 flow_key[2];        /* by which all load balancers hash flows */
	__u64 elsewhere;          /* which half of that map holds, 1 or 2; 0: no flow is elsewhere */
};
struct port {                 /* index: that of the interface */
	__u8 mac[6];
	__u16 mtu;                /* 0: frames of it are not for us */
	__u32 redirects;          /* frames leave by the map of devices also where they came in: XDP_TX would lose them */
	__u32 reserved;
};
struct mac { __u8 bytes[6]; __u16 zero; };   /* key of the stations whose frames were balanced before */
/*
 * A flow, where its hash says, in a group of them. Workers write while this is read: an entry is one only if `check` ties
 * its key to its backend, which no two writes in the middle of each other leave so.
 */
struct flow_v4 {
	__u64 addresses;
	__u32 ports, stamp;       /* the tick of its entry, and UDP_FLOW */
	__u64 backend, check;     /* check: the key's hash, and the backend */
};
struct flow_v6 {
	__u64 addresses[4];
	__u32 ports, stamp;
	__u64 backend, check, reserved;
};
#define GROUP_V4 8
#define GROUP_V6 4
#define UDP_FLOW (1u << 31)
struct group_v4 { struct flow_v4 flow[GROUP_V4]; };
struct group_v6 { struct flow_v6 flow[GROUP_V6]; };
struct backend {              /* index: its slot */
	__u64 name;               /* what entries of flows call it, and its version; 0: none */
	__u64 given_mac;          /* six bytes and one that says that there are; goes before the other */
	__u64 resolved_mac;       /* written by a worker as it learns it */
	__u32 interface;
	__u32 takes;              /* bits: 1 flows of TCP, 2 of UDP; above them the number of its service */
};
struct traffic { __u64 packets, bytes, new_flows; };    /* index: processor * SLOTS + slot */
/*
 * A port of a VIP whose new flows can be placed here; where its hash says, in a group of them. It is written while this is read:
 * what was found by it holds only if its version is even, and still the same afterwards; and the backend has its number.
 */
struct service {
	__u64 version;
	__u64 address[2];         /* as in frames; the first is all of an IPv4 address */
	__u32 port, number;       /* port: the service's, its protocol and V6 */
	__u32 table, size;        /* the entries of its Maglev table, by fours in one word: the slots of backends */
	__u64 reserved[3];
};
#define GROUP_SERVICES 8
#define SERVICE_GROUPS 4096
#define V6 (1u << 24)
struct service_group { struct service service[GROUP_SERVICES]; };
/*
 * Marks, a bit for the upper bits of a hash: of the addresses from which no host sends, besides those that are so everywhere;
 * and the flows that workers know at another backend than Maglev says, twice, of which one holds while the other is written.
 */
#define BITS_BAD 20
#define BITS_ELSEWHERE 23

enum passed {                 /* why a frame was passed; the first counts those that were not */
	FORWARDED, STALE, NOT_OURS, ODD, PARTIAL, UNKNOWN, EXPIRED, BACKEND, TOO_BIG, REASONS
};
struct processor {
	__u64 count[REASONS];
	__u64 jiffy, now_ns;      /* the clock costs much: it is read once a jiffy */
	__u64 credit_ns;          /* so much may workers still spend on unknown flows */
	__u64 placed;
	__u64 reserved[3];
};

#define TCP_BIT 1
#define UDP_BIT 2
#define MAC_KNOWN 48

INLINE int pass(struct processor *here, enum passed reason)
{
	here->count[reason]++;
	return XDP_PASS;
}

/* What of a packet matters. */
struct packet {
	__u32 takes;
	__u32 room;               /* bytes behind the Ethernet header */
	__u32 stamp, *stamped;    /* of the flow's entry, and where */
	__u64 sum;                /* of the pseudo-header, not folded */
	__u64 hash;               /* of the flow */
	__u64 backend;            /* by the flow's entry */
	__u64 addresses[4];       /* of IPv4 both in the first word */
	__u32 ports;
	__u32 changes;            /* what the worker knows of the flow */
	__u32 opens;              /* it may be a new flow's first, and nothing else */
	__u32 has_entry, v6;
	__u64 asked;              /* which half of `elsewhere` */
};

INLINE __u16 folded(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)((sum & 0xffff) + (sum >> 16));
}

/*
 * The header of TCP or UDP, read. A checksum that is only the pseudo-header's sum was left to the hardware by a sender on
 * this machine (CHECKSUM_PARTIAL): XDP would lose that, the usual way does not. By chance it is so for one frame in 65536,
 * which takes the usual way, too.
 */
INLINE enum passed transport(struct packet *packet, void *at, void *end, __u32 protocol, __u32 within)
{
	if (protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = at;
		if ((void *)(tcp + 1) > end || tcp->doff < 5 || tcp->doff * 4u > within)
			return ODD;
		if (tcp->check == folded(packet->sum))
			return PARTIAL;
		packet->ports = *(__u32 *)tcp;
		packet->changes = tcp->syn | tcp->fin | tcp->rst;
		packet->opens = tcp->syn && !(tcp->ack | tcp->fin | tcp->rst);
		packet->takes = TCP_BIT;
		return FORWARDED;
	}
	if (protocol == IPPROTO_UDP) {
		struct udphdr *udp = at;
		if ((void *)(udp + 1) > end || within < sizeof(*udp) || be16(udp->len) != within)
			return ODD;
		if (udp->check == folded(packet->sum))
			return PARTIAL;
		packet->ports = *(__u32 *)udp;
		packet->changes = 0;
		packet->opens = 1;
		packet->takes = UDP_BIT;
		return FORWARDED;
	}
	return ODD;
}

/* Keyed, so that it is not the same on two nodes or after a start; who aims at a group displaces entries, and no more. */
INLINE __u64 mixed(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15;
	return hash ^ hash >> 32;
}

/*
 * An entry of the packet's flow, if it is whole. A SYN may begin another flow, and FIN and RST change what the worker knows: they
 * take the usual way, and the worker forgets the entry.
 */
#define TAKE(packet, entry, hash) \
	do { \
		__u64 backend = *(volatile __u64 *)&(entry)->backend; \
		(packet)->stamp = *(volatile __u32 *)&(entry)->stamp; \
		(packet)->has_entry = 1; \
		if (*(volatile __u64 *)&(entry)->check != (backend ^ (hash))) \
			return UNKNOWN; \
		if ((packet)->changes) \
			return UNKNOWN; \
		(packet)->backend = backend; \
		(packet)->stamped = &(entry)->stamp; \
		return FORWARDED; \
	} while (0)

INLINE enum passed ipv4(struct packet *packet, const struct settings *set, void *at, void *end)
{
	struct iphdr *ip = at;
	enum passed why;
	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || ip->frag_off & be16(0x3fff))
		return ODD;
	__u32 length = be16(ip->tot_len);
	if (length < sizeof(*ip) || length > packet->room)
		return ODD;
	length -= sizeof(*ip);
	packet->sum = (__u64)ip->saddr + ip->daddr + be16(ip->protocol) + be16((__u16)length);
	why = transport(packet, ip + 1, end, ip->protocol, length);
	if (why)
		return why;
	__u64 addresses = (__u64)ip->daddr << 32 | ip->saddr;
	packet->addresses[0] = addresses;
	__u32 udp = packet->takes == UDP_BIT ? UDP_FLOW : 0;
	__u64 hash = mixed(mixed(set->hash_key, addresses), (__u64)udp << 1 | packet->ports);
	packet->hash = hash;
	__u32 number = (hash >> 8) & set->mask_v4, first = hash & (GROUP_V4 - 1);
	struct group_v4 *group = map_lookup(&flows_v4, &number);
	if (!group)
		return UNKNOWN;
	for (__u32 i = 0; i < GROUP_V4; i++) {
		struct flow_v4 *flow = &group->flow[(first + i) & (GROUP_V4 - 1)];
		if (flow->ports == packet->ports && flow->addresses == addresses && (flow->stamp & UDP_FLOW) == udp)
			TAKE(packet, flow, hash);
	}
	return UNKNOWN;
}

INLINE enum passed ipv6(struct packet *packet, const struct settings *set, void *at, void *end)
{
	struct ipv6hdr *ip = at;
	enum passed why;
	__u64 *addresses = packet->addresses;
	if ((void *)(ip + 1) > end || ip->version != 6)
		return ODD;
	__u32 length = be16(ip->payload_len);
	if (sizeof(*ip) + length > packet->room)
		return ODD;
	__builtin_memcpy(addresses, &ip->saddr, sizeof(packet->addresses));
	packet->v6 = 1;
	packet->sum = be16(ip->nexthdr) + ip->payload_len;
	for (int word = 0; word < 4; word++)
		packet->sum += (addresses[word] & 0xffffffff) + (addresses[word] >> 32);
	why = transport(packet, ip + 1, end, ip->nexthdr, length);
	if (why)
		return why;
	__u32 udp = packet->takes == UDP_BIT ? UDP_FLOW : 0;
	__u64 hash = set->hash_key;
	for (int word = 0; word < 4; word++)
		hash = mixed(hash, addresses[word]);
	hash = mixed(hash, (__u64)udp << 1 | packet->ports);
	packet->hash = hash;
	__u32 number = (hash >> 8) & set->mask_v6, first = hash & (GROUP_V6 - 1);
	struct group_v6 *group = map_lookup(&flows_v6, &number);
	if (!group)
		return UNKNOWN;
	for (__u32 i = 0; i < GROUP_V6; i++) {
		struct flow_v6 *flow = &group->flow[(first + i) & (GROUP_V6 - 1)];
		if (flow->ports == packet->ports && flow->addresses[0] == addresses[0] && flow->addresses[1] == addresses[1] &&
		    flow->addresses[2] == addresses[2] && flow->addresses[3] == addresses[3] && (flow->stamp & UDP_FLOW) == udp)
			TAKE(packet, flow, hash);
	}
	return UNKNOWN;
}

#define ROTATED(x, n) ((x) << (n) | (x) >> (64 - (n)))
#define ROUND \
	do { \
		v0 += v1; v2 += v3; v1 = ROTATED(v1, 13) ^ v0; v3 = ROTATED(v3, 16) ^ v2; v0 = ROTATED(v0, 32); \
		v2 += v1; v0 += v3; v1 = ROTATED(v1, 17) ^ v2; v3 = ROTATED(v3, 21) ^ v0; v2 = ROTATED(v2, 32); \
	} while (0)
#define TAKE_IN(word) \
	do { __u64 taken = (word); v3 ^= taken; ROUND; v0 ^= taken; } while (0)

/* SipHash-1-3 of the tuple without its source port, as forward/hash.rs has it. */
INLINE __u64 tuple_hash(const struct settings *set, const struct packet *packet, __u32 port)
{
	__u64 v0 = set->flow_key[0] ^ 0x736f6d6570736575, v1 = set->flow_key[1] ^ 0x646f72616e646f6d;
	__u64 v2 = set->flow_key[0] ^ 0x6c7967656e657261, v3 = set->flow_key[1] ^ 0x7465646279746573;
	__u64 bytes = packet->v6 ? 40 : 16;
	TAKE_IN(packet->addresses[0]);
	if (packet->v6) {
		TAKE_IN(packet->addresses[1]);
		TAKE_IN(packet->addresses[2]);
		TAKE_IN(packet->addresses[3]);
	}
	TAKE_IN(port);
	TAKE_IN(bytes << 56);
	v2 ^= 0xff;
	ROUND;
	ROUND;
	ROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

/* Where the flow stands in a table of so many entries, as forward/hash.rs has it. */
INLINE __u32 spread(__u64 base, __u32 source_port, __u32 size)
{
	__u32 left = source_port >> 8, right = source_port & 0xff;
	for (int round = 0; round < 4; round++) {
		__u32 mixed = (right + (__u32)(base >> (8 * round))) * 0x9e3779b1u;
		__u32 next = left ^ mixed >> 24;
		left = right;
		right = next;
	}
	__u64 position = (__u64)(left << 8 | right) * size >> 16;
	__u64 entry = ((base >> 32) * size >> 32) + position;
	return entry >= size ? entry - size : entry;
}

/* Whether a hash is marked in a half of a map that goes by so many bits of hashes, or seems so. */
INLINE int is_marked(void *marks, __u32 half, int bits, __u64 hash)
{
	__u64 at = hash >> (64 - bits);
	__u32 number = (half << (bits - 6)) + (at >> 6);
	__u64 *word = map_lookup(marks, &number);
	return !word || *(volatile __u64 *)word >> (at & 63) & 1;
}

/* Whether no host sends from where the packet comes. What is not sure is so, too: it is for a worker. */
INLINE int is_bad_source(const struct settings *set, const struct packet *packet)
{
	if (packet->v6) {
		/* Of addresses in the first 64 bits of zeros there are none that hosts send from, but for IPv4 in IPv6. */
		if (!packet->addresses[0] || (packet->addresses[0] & 0xff) == 0xff)
			return 1;
		return is_marked(&bad_sources, 0, BITS_BAD, mixed(mixed(set->hash_key, packet->addresses[0]), packet->addresses[1]));
	}
	__u32 source = packet->addresses[0], first = source & 0xff;
	if (first == 0 || first == 127 || (first >= 224 && first <= 239) || source == 0xffffffff)
		return 1;
	return is_marked(&bad_sources, 0, BITS_BAD, mixed(mixed(set->hash_key, source), 0));
}

/* The service of the packet's destination, and its version, where new flows of it can be placed at this moment. */
INLINE struct service *open_service(const struct settings *set, const struct packet *packet, __u32 port, __u64 *version)
{
	__u64 high = packet->v6 ? packet->addresses[2] : packet->addresses[0] >> 32;
	__u64 low = packet->v6 ? packet->addresses[3] : 0;
	__u64 hash = mixed(mixed(mixed(set->hash_key, high), low), port);
	__u32 number = (hash >> 8) & (SERVICE_GROUPS - 1), first = hash & (GROUP_SERVICES - 1);
	struct service_group *group = map_lookup(&services, &number);
	if (!group)
		return 0;
	for (__u32 i = 0; i < GROUP_SERVICES; i++) {
		struct service *service = &group->service[(first + i) & (GROUP_SERVICES - 1)];
		*version = *(volatile __u64 *)&service->version;
		if (service->port == port && service->address[0] == high && service->address[1] == low)
			return *version & 1 ? 0 : service;
	}
	return 0;
}

/* Whether a worker may know the flow at another backend than Maglev says. */
INLINE int is_elsewhere(const struct settings *set, struct packet *packet)
{
	packet->asked = *(volatile __u64 *)&set->elsewhere;
	return packet->asked && is_marked(&elsewhere, packet->asked - 1, BITS_ELSEWHERE, packet->hash);
}

/* Where Maglev says that the flow goes: the slot of a backend, or SLOTS. */
INLINE __u32 maglev_says(const struct settings *set, const struct packet *packet, const struct service *service, __u32 port)
{
	__u32 size = service->size;
	__u32 entry = spread(tuple_hash(set, packet, port), be16((__u16)packet->ports), size);
	__u32 word = service->table + (entry >> 2);
	__u64 *four = map_lookup(&maglev, &word);
	return four ? (*four >> 16 * (entry & 3)) & 0xffff : SLOTS;
}

SECTION("xdp") int accelerator(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 zero = 0, id = processor(), came_by = ctx->ingress_ifindex;
	struct settings *set = map_lookup(&settings, &zero);
	struct processor *here = map_lookup(&processors, &id);
	struct port *port = map_lookup(&ports, &came_by);
	struct ethhdr *eth = data;
	struct packet packet = {};
	enum passed why;
	if (!set || !here || !port || !port->mtu || (void *)(eth + 1) > end)
		return XDP_PASS;
	__u64 jiffy = jiffies();
	if (here->jiffy != jiffy) {
		__u64 now_ns = boottime_ns(), credit_ns = here->credit_ns + (now_ns - here->now_ns);
		here->jiffy = jiffy;
		here->credit_ns = credit_ns < BURST_NS ? credit_ns : BURST_NS;
		here->now_ns = now_ns;
	}
	if (here->now_ns >= set->valid_until_ns)
		return pass(here, STALE);
	/* Not __builtin_memcmp: clang 14 makes a call of it. */
	if (*(__u16 *)eth->h_dest != *(__u16 *)port->mac || *(__u32 *)(eth->h_dest + 2) != *(__u32 *)(port->mac + 2))
		return pass(here, NOT_OURS);
	packet.room = frame_len(ctx) - ETH_HLEN;
	if (eth->h_proto == be16(ETH_P_IP))
		why = ipv4(&packet, set, eth + 1, end);
	else if (eth->h_proto == be16(ETH_P_IPV6))
		why = ipv6(&packet, set, eth + 1, end);
	else
		why = ODD;
	struct service *service = 0;
	__u64 version = 0;
	if (why == UNKNOWN && packet.opens && !packet.has_entry) {
		__u32 port = packet.ports >> 16 | (packet.takes == UDP_BIT ? IPPROTO_UDP : IPPROTO_TCP) << 16 | (packet.v6 ? V6 : 0);
		service = is_bad_source(set, &packet) ? 0 : open_service(set, &packet, port, &version);
		if (service && !is_elsewhere(set, &packet)) {
			packet.backend = maglev_says(set, &packet, service, port & (V6 - 1));
			why = FORWARDED;
		}
	}
	if (why)
		return pass(here, why);
	struct mac from = {};
	__builtin_memcpy(from.bytes, eth->h_source, 6);
	if (from.bytes[0] & 1 || (set->strangers >> (from.bytes[5] & 63) & 1 && map_lookup(&strangers, &from)))
		return pass(here, NOT_OURS);

	__u64 name = packet.backend;
	__u32 now = (here->now_ns >> TICK_SHIFT) & TICK_MASK, slot = name & (SLOTS - 1);
	/* An entry may come from a clock that is somewhat ahead. Where no worker is there to look at its flow it stays good. */
	__u32 age = (now + AHEAD - packet.stamp) & TICK_MASK, fresh = set->fresh + AHEAD;
	if (!service && age > fresh && set->valid_until_ns - here->now_ns > SILENT_NS) {
		/* One frame is for the worker. Those behind it go on, and if it is lost, one of the next second is. */
		if (age <= fresh + SECOND && packet.stamped)
			*packet.stamped = ((now - set->fresh + SECOND) & TICK_MASK) | (packet.stamp & UDP_FLOW);
		return pass(here, EXPIRED);
	}
	struct backend *backend = map_lookup(&backends, &slot);
	if (!backend || !backend->name || !(backend->takes & packet.takes))
		return pass(here, BACKEND);
	if (service ? name >= SLOTS || backend->takes >> 2 != service->number : backend->name != name)
		return pass(here, BACKEND);
	/* In one load each: a worker may store another one meanwhile. */
	__u64 mac = *(volatile __u64 *)&backend->given_mac;
	if (!(mac >> MAC_KNOWN))
		mac = *(volatile __u64 *)&backend->resolved_mac;
	if (!(mac >> MAC_KNOWN))
		return pass(here, BACKEND);
	if ((__u16)mac == *(__u16 *)eth->h_source && (__u32)(mac >> 16) == *(__u32 *)(eth->h_source + 2))
		return pass(here, BACKEND);
	__u32 leaves_by = backend->interface;
	struct port *out = leaves_by == came_by ? port : map_lookup(&ports, &leaves_by);
	if (!out || !out->mtu)
		return pass(here, BACKEND);
	/* What stands behind the packet goes with it, if there is room. */
	if (packet.room > out->mtu)
		return pass(here, TOO_BIG);
	if (service) {
		__u64 frame_ns = *(volatile __u64 *)&set->frame_ns;
		/* What was asked may be written anew meanwhile. */
		if (*(volatile __u64 *)&service->version != version || *(volatile __u64 *)&set->elsewhere != packet.asked)
			return pass(here, BACKEND);
		/* Within its budget it is for a worker, who remembers the flow. */
		if (here->credit_ns >= frame_ns) {
			here->credit_ns -= frame_ns;
			return pass(here, UNKNOWN);
		}
	}
	int verdict = XDP_TX;
	if (leaves_by != came_by || out->redirects) {
		/* Before the frame is touched: what is passed is as it came. */
		verdict = redirect_map(&devices, leaves_by, XDP_PASS);
		if (verdict != XDP_REDIRECT)
			return pass(here, BACKEND);
	}
	__builtin_memcpy(eth->h_dest, &mac, 6);
	__builtin_memcpy(eth->h_source, out->mac, 6);
	__u32 at = id * SLOTS + slot;
	struct traffic *sums = map_lookup(&traffic, &at);
	if (sums) {
		sums->packets++;
		sums->bytes += ETH_HLEN + packet.room;
		sums->new_flows += !!service;
	}
	here->placed += !!service;
	here->count[FORWARDED]++;
	return verdict;
}

char _license[] SECTION("license") = "Dual MIT/GPL";
