// What the node tells is shown: never as markup, always as text.
import { draw, stateOf } from "./picture.js";

/** The sparklines have so many points, one a second. */
const POINTS = 60;

const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const rate = (value) => (value === null || value === undefined ? "–" : value < 0.05 ? "0" : number.format(value));

const clock = (time) => new Date(time).toLocaleTimeString([], { hourCycle: "h23" });

/** An element with text or children in it. */
function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** The rows of a table by their keys, so that what is read or focused stays where it is. */
class Rows {
  constructor(id) {
    this.section = byId(id);
    this.body = this.section.querySelector("tbody");
    this.columns = [...this.section.querySelectorAll("th")].map((head) => head.className);
    this.rows = new Map();
  }

  /** `cells(row)`: a text or an element for each column. `total`: how many there are, of which these are some. */
  show(all, key, cells, { total = all.length, className = () => "" } = {}) {
    const seen = new Set();
    let at = this.body.firstElementChild;
    for (const row of all) {
      const name = key(row);
      seen.add(name);
      let shown = this.rows.get(name);
      if (!shown) {
        shown = element("tr", "");
        this.columns.forEach((column) => shown.append(element("td", column)));
        this.rows.set(name, shown);
      }
      cells(row).forEach((cell, column) => fill(shown.children[column], cell));
      shown.className = className(row);
      shown.hidden = !shown.textContent.toLowerCase().includes(filter);
      if (shown === at) at = at.nextElementSibling;
      else this.body.insertBefore(shown, at);
    }
    for (const [name, shown] of this.rows) {
      if (!seen.has(name)) {
        shown.remove();
        this.rows.delete(name);
      }
    }
    const count = all.length < total ? `${all.length} of ${total}, what is wrong first` : String(total);
    fill(this.section.querySelector(".count"), count);
  }
}

/** Changes what is there only where it differs. */
function fill(cell, content) {
  if (content instanceof Node) {
    const is = cell.childNodes.length === 1 && (cell.firstChild === content || cell.firstChild.isEqualNode(content));
    if (!is) cell.replaceChildren(content);
  } else if (cell.textContent !== content || cell.children.length > 0) {
    cell.textContent = content;
  }
}

/** The last minute of each VIP. */
const trends = new Map();

class Trend {
  constructor() {
    this.points = [];
    this.svg = svg("svg", { viewBox: "0 0 160 30", preserveAspectRatio: "none", role: "img" });
    this.lines = ["packets", "flows"].map((name) => svg("path", { class: name }));
    this.svg.append(...this.lines);
  }

  add(second, packets, flows) {
    if (this.points.at(-1)?.second === second) this.points.pop();
    this.points.push({ second, values: [packets, flows] });
    this.points = this.points.filter((point) => point.second > second - POINTS);
    this.lines.forEach((line, of) => line.setAttribute("d", this.path(second, of)));
    const greatest = [0, 1].map((of) => Math.max(0, ...this.points.map((point) => point.values[of] ?? 0)));
    this.svg.setAttribute(
      "aria-label",
      `in the last minute at most ${rate(greatest[0])} packets and ${rate(greatest[1])} new flows in a second`,
    );
  }

  path(now, of) {
    const greatest = Math.max(1, ...this.points.map((point) => point.values[of] ?? 0));
    let path = "";
    let pen = "M";
    for (const { second, values } of this.points) {
      if (values[of] === null) {
        pen = "M";
        continue;
      }
      const x = 160 - ((now - second) * 160) / (POINTS - 1);
      path += `${pen}${x.toFixed(1)} ${(28 - (26 * values[of]) / greatest).toFixed(1)}`;
      pen = "L";
    }
    return path;
  }
}

function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const tables = Object.fromEntries(
  ["vips", "services", "backends", "nodes", "drops", "events"].map((id) => [id, new Rows(id)]),
);
let filter = "";
let last = null;

/** A word with a mark before it, so that its colour alone says nothing. */
const state = (kind, word, why) => {
  const told = element("span", kind, word);
  return why ? element("div", "", told, element("small", "", why)) : told;
};

function show(now) {
  last = now;
  const { status } = now;
  document.title = `${status.warnings.length ? `(${status.warnings.length}) ` : ""}${status.cluster} – lbd`;
  fill(byId("cluster"), status.cluster);
  fill(byId("node"), status.node);
  facts(status);
  problems(status, now.silent_nodes);
  draw(byId("picture"), now, { svg, rate });
  const second = Math.round(now.at_ms / 1000);
  tables.vips.show(
    now.vips,
    (vip) => vip.address,
    (vip) => {
      if (!trends.has(vip.address)) trends.set(vip.address, new Trend());
      const trend = trends.get(vip.address);
      trend.add(second, vip.rate?.packets_per_second ?? null, vip.rate?.new_flows_per_second ?? null);
      const owner = vip.problem ? state("bad", vip.owner || "nobody", vip.problem) : state("good", vip.owner);
      const moving = vip.moving_to ? state("wait", vip.owner, `moves to ${vip.moving_to}`) : owner;
      return [
        vip.address,
        moving,
        rate(vip.rate?.packets_per_second),
        rate(vip.rate?.new_flows_per_second),
        trend.svg,
      ];
    },
    { total: status.vips },
  );
  const known = new Set(now.vips.map((vip) => vip.address));
  for (const address of trends.keys()) if (!known.has(address)) trends.delete(address);
  tables.services.show(
    now.services,
    (service) => service.name,
    (service) => {
      const kind = service.taking === 0 ? "bad" : service.failing > 0 ? "wait" : "good";
      return [service.name, service.vip, ports(service), state(kind, `${service.taking} of ${service.backends}`)];
    },
    { total: status.services },
  );
  tables.backends.show(
    now.backends,
    (backend) => `${backend.service} ${backend.address}`,
    (backend) => [
      element("div", "", backend.address, element("small", "narrow", backend.service)),
      backend.service,
      health(backend),
      String(backend.weight ?? 1),
      rate(backend.rate?.packets_per_second),
      rate(backend.rate?.new_flows_per_second),
    ],
    { total: status.backends },
  );
  tables.nodes.show(
    now.nodes,
    (node) => node.name,
    (node) => [
      element("div", "", node.name, element("small", "", [node.role, node.leader ? "leader" : ""].filter(Boolean).join(", "))),
      state(...stateOf(node)),
      String(node.vips),
      node.round_trip_us ? `${(node.round_trip_us / 1000).toFixed(2)} ms` : "–",
      rate(node.rate?.forwarded_per_second),
      rate(node.rate?.dropped_per_second),
    ],
  );
  tables.drops.show(
    now.drops,
    (drop) => drop.reason,
    (drop) => [drop.reason.replaceAll("_", " "), drop.packets.toLocaleString("en"), rate(drop.per_second)],
  );
  tables.events.show(
    now.events,
    (event) => String(event.number),
    (event) => {
      const at = element("time", "", clock(event.time));
      at.dateTime = event.time;
      at.title = event.time;
      return [at, event.kind, event.event];
    },
    { className: (event) => (event.warning ? "warning" : "") },
  );
}

function ports(service) {
  const text = (range) => `${range.first}${range.last > range.first ? `-${range.last}` : ""}/${range.protocol}`;
  return service.ports.length ? service.ports.map(text).join(" ") : "all";
}

function health(backend) {
  const reason = backend.health_reason;
  if (backend.health === "unhealthy" || backend.health === "unreachable") return state("bad", backend.health, reason);
  if (backend.state === "drain") return state("wait", backend.drained ? "drained" : "is drained", reason);
  if (backend.state === "down") return state("wait", "disabled", reason);
  return state("good", backend.health === "unspecified" ? "unchecked" : backend.health, "");
}

function facts(status) {
  const all = {
    leader: status.leader || "nobody",
    term: status.term,
    revision: status.revision,
    engine: status.dataplane?.engine ?? "none",
    lease: status.held ? "held" : `${status.lease_valid_ms} ms`,
    version: status.version,
  };
  const list = byId("facts");
  if (list.children.length === 0) {
    for (const name of Object.keys(all)) {
      list.append(element("div", "", element("dt", "", name), element("dd", "")));
    }
  }
  Object.values(all).forEach((value, at) => fill(list.children[at].lastElementChild, String(value)));
}

function problems(status, silent) {
  const all = [...(status.waiting ? [status.waiting] : []), ...status.warnings];
  for (const node of silent) all.push(`its counters are not known: ${node}`);
  const list = byId("problem-list");
  const told = JSON.stringify(all);
  if (list.dataset.told === told) return;
  list.dataset.told = told;
  list.replaceChildren(...all.map((problem) => element("li", "", problem)));
  byId("problems").hidden = all.length === 0;
}

byId("filter").addEventListener("input", (event) => {
  filter = event.target.value.trim().toLowerCase();
  if (last) show(last);
});
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== byId("filter")) {
    event.preventDefault();
    byId("filter").focus();
  }
});
addEventListener("resize", () => last && draw(byId("picture"), last, { svg, rate }));

/** Where nothing has come for so long, the page is no picture of now. */
const SILENCE_MS = 3500;
let heard = 0;

function connection(kind, text) {
  const line = byId("connection");
  line.className = kind;
  fill(line, text);
  document.body.classList.toggle("stale", kind === "lost");
}

function follow() {
  const source = new EventSource("/live");
  source.addEventListener("message", (event) => {
    heard = Date.now();
    show(JSON.parse(event.data));
    connection("live", "live");
  });
  source.addEventListener("error", () => {
    // It goes on by itself, unless it was refused.
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 2000);
  });
}

setInterval(() => {
  if (heard && Date.now() - heard > SILENCE_MS) {
    connection("lost", `nothing heard since ${clock(heard)}: trying again`);
  }
}, 500);
follow();
