// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The accelerator: forwards frames of flows that a worker has entered into its tables, in the driver, and passes all others on.
 *
 * It decides nothing. Which backend a flow has was decided by a worker, who enters the flow for a while; until then, and
 * again when that while is over, its frames take the usual way, so that the worker's flow table stays the only truth. Here
 * nothing is dropped, answered or learned: what is not known in all points is passed (XDP_PASS) as it came.
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
	devices SECTION("maps");

#define SLOTS 16384           /* backends that can be forwarded to */
#define TICK_SHIFT 26         /* as forward/flow.rs counts time: units of 2^26 ns */
#define TICK_MASK ((1u << 29) - 1)
#define SECOND 15             /* ticks */
#define AHEAD 16              /* ticks by which clocks may differ */
#define SILENT_NS 9500000000ull /* less time is left only when the first worker has not turned for nearly half a second */

struct settings {             /* one element, which user space has mapped */
	__u64 valid_until_ns;     /* CLOCK_BOOTTIME: from then on all is passed */
	__u64 fresh;              /* for so many ticks an entry is good */
	__u64 strangers;          /* a bit for the last six bits of each of them: most frames are of none */
	__u64 hash_key;
	__u32 mask_v4, mask_v6;   /* groups of either table, less one */
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
	__u32 takes;              /* bits: 1 flows of TCP, 2 of UDP */
};
struct traffic { __u64 packets, bytes; };    /* index: processor * SLOTS + slot */

enum passed {                 /* why a frame was passed; the first counts those that were not */
	FORWARDED, STALE, NOT_OURS, ODD, PARTIAL, UNKNOWN, EXPIRED, BACKEND, TOO_BIG, REASONS
};
struct processor {
	__u64 count[REASONS];
	__u64 jiffy, now_ns;      /* the clock costs much: it is read once a jiffy */
	__u64 reserved[5];
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
	__u64 backend;            /* by the flow's entry */
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
struct transport { __u32 ports; __u8 changes; };

INLINE enum passed transport(struct packet *packet, struct transport *read, void *at, void *end, __u32 protocol, __u32 within)
{
	if (protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = at;
		if ((void *)(tcp + 1) > end || tcp->doff < 5 || tcp->doff * 4u > within)
			return ODD;
		if (tcp->check == folded(packet->sum))
			return PARTIAL;
		read->ports = *(__u32 *)tcp;
		read->changes = tcp->syn | tcp->fin | tcp->rst;
		packet->takes = TCP_BIT;
		return FORWARDED;
	}
	if (protocol == IPPROTO_UDP) {
		struct udphdr *udp = at;
		if ((void *)(udp + 1) > end || within < sizeof(*udp) || be16(udp->len) != within)
			return ODD;
		if (udp->check == folded(packet->sum))
			return PARTIAL;
		read->ports = *(__u32 *)udp;
		read->changes = 0;
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
#define TAKE(packet, read, entry, hash) \
	do { \
		__u64 backend = *(volatile __u64 *)&(entry)->backend; \
		(packet)->stamp = *(volatile __u32 *)&(entry)->stamp; \
		if (*(volatile __u64 *)&(entry)->check != (backend ^ (hash))) \
			return UNKNOWN; \
		if ((read).changes) \
			return UNKNOWN; \
		(packet)->backend = backend; \
		(packet)->stamped = &(entry)->stamp; \
		return FORWARDED; \
	} while (0)

INLINE enum passed ipv4(struct packet *packet, const struct settings *set, void *at, void *end)
{
	struct iphdr *ip = at;
	struct transport read;
	enum passed why;
	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || ip->frag_off & be16(0x3fff))
		return ODD;
	__u32 length = be16(ip->tot_len);
	if (length < sizeof(*ip) || length > packet->room)
		return ODD;
	length -= sizeof(*ip);
	packet->sum = (__u64)ip->saddr + ip->daddr + be16(ip->protocol) + be16((__u16)length);
	why = transport(packet, &read, ip + 1, end, ip->protocol, length);
	if (why)
		return why;
	__u64 addresses = (__u64)ip->daddr << 32 | ip->saddr;
	__u32 udp = packet->takes == UDP_BIT ? UDP_FLOW : 0;
	__u64 hash = mixed(mixed(set->hash_key, addresses), (__u64)udp << 1 | read.ports);
	__u32 number = (hash >> 8) & set->mask_v4, first = hash & (GROUP_V4 - 1);
	struct group_v4 *group = map_lookup(&flows_v4, &number);
	if (!group)
		return UNKNOWN;
	for (__u32 i = 0; i < GROUP_V4; i++) {
		struct flow_v4 *flow = &group->flow[(first + i) & (GROUP_V4 - 1)];
		if (flow->ports == read.ports && flow->addresses == addresses && (flow->stamp & UDP_FLOW) == udp)
			TAKE(packet, read, flow, hash);
	}
	return UNKNOWN;
}

INLINE enum passed ipv6(struct packet *packet, const struct settings *set, void *at, void *end)
{
	struct ipv6hdr *ip = at;
	struct transport read;
	enum passed why;
	__u64 addresses[4];
	if ((void *)(ip + 1) > end || ip->version != 6)
		return ODD;
	__u32 length = be16(ip->payload_len);
	if (sizeof(*ip) + length > packet->room)
		return ODD;
	__builtin_memcpy(addresses, &ip->saddr, sizeof(addresses));
	packet->sum = be16(ip->nexthdr) + ip->payload_len;
	for (int word = 0; word < 4; word++)
		packet->sum += (addresses[word] & 0xffffffff) + (addresses[word] >> 32);
	why = transport(packet, &read, ip + 1, end, ip->nexthdr, length);
	if (why)
		return why;
	__u32 udp = packet->takes == UDP_BIT ? UDP_FLOW : 0;
	__u64 hash = set->hash_key;
	for (int word = 0; word < 4; word++)
		hash = mixed(hash, addresses[word]);
	hash = mixed(hash, (__u64)udp << 1 | read.ports);
	__u32 number = (hash >> 8) & set->mask_v6, first = hash & (GROUP_V6 - 1);
	struct group_v6 *group = map_lookup(&flows_v6, &number);
	if (!group)
		return UNKNOWN;
	for (__u32 i = 0; i < GROUP_V6; i++) {
		struct flow_v6 *flow = &group->flow[(first + i) & (GROUP_V6 - 1)];
		if (flow->ports == read.ports && flow->addresses[0] == addresses[0] && flow->addresses[1] == addresses[1] &&
		    flow->addresses[2] == addresses[2] && flow->addresses[3] == addresses[3] && (flow->stamp & UDP_FLOW) == udp)
			TAKE(packet, read, flow, hash);
	}
	return UNKNOWN;
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
		here->jiffy = jiffy;
		here->now_ns = boottime_ns();
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
	if (age > fresh && set->valid_until_ns - here->now_ns > SILENT_NS) {
		/* One frame is for the worker. Those behind it go on, and if it is lost, one of the next second is. */
		if (age <= fresh + SECOND && packet.stamped)
			*packet.stamped = ((now - set->fresh + SECOND) & TICK_MASK) | (packet.stamp & UDP_FLOW);
		return pass(here, EXPIRED);
	}
	struct backend *backend = map_lookup(&backends, &slot);
	if (!backend || !name || backend->name != name || !(backend->takes & packet.takes))
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
	}
	here->count[FORWARDED]++;
	return verdict;
}

char _license[] SECTION("license") = "Dual MIT/GPL";
