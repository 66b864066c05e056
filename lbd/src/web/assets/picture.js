// The cluster as a picture: clients, the nodes with their VIPs, the services with their backends. What clients send goes by the
// owner; what backends answer goes straight back.

/** In pixels: between layers and boxes, the height of a line, and about the width of a letter. */
const GAP = 16;
const LINE = 17;
const LETTER = 7.1;
/** VIPs that are named in a box; and services that have one. */
const NAMED = 4;
const SERVICES = 9;

/** How a node is: a kind, a word, and why. */
export function stateOf(node) {
  if (!node.heard) return ["bad", "not heard", ""];
  if (node.unfit) return ["bad", "can own no VIP", node.unfit];
  if (node.draining) return ["wait", "is drained", ""];
  return node.ready || node.role === "witness" ? ["good", "ready", ""] : ["wait", "not ready", ""];
}

export function draw(at, now, { svg, rate }) {
  const width = Math.max(240, at.clientWidth);
  const vips = new Map(now.nodes.map((node) => [node.name, now.vips.filter((vip) => vip.owner === node.name)]));
  const layers = [[clients(now)], now.nodes.map((node) => nodeBox(node, vips.get(node.name), rate)), services(now)];
  const isWide = width >= 640;
  const placed = isWide ? inColumns(layers, width) : inRows(layers, width);
  const lines = edges(placed, now, isWide);
  const height = placed.height;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": words(now, vips) });
  const line = ({ path, busy, answer, title }) => {
    const made = svg("path", { d: path, class: `${answer ? "answer" : ""} ${busy ? "busy" : ""}` });
    made.append(titled(svg, title));
    return made;
  };
  picture.append(...lines.map(line), ...placed.boxes.flatMap((box) => shown(box, svg)));
  at.replaceChildren(picture);
}

const titled = (svg, text) => {
  const title = svg("title", {});
  title.textContent = text;
  return title;
};

function clients(now) {
  const packets = now.vips.reduce((sum, vip) => sum + (vip.rate?.packets_per_second ?? 0), 0);
  return { id: "clients", lines: [["title", "clients"], ["quiet", packets > 0 ? "send" : "are silent"]], className: "" };
}

function nodeBox(node, vips, rate) {
  const [kind, word] = stateOf(node);
  const lines = [["title", node.name], [kind === "good" ? "quiet" : kind, node.leader ? `${word}, leads` : word]];
  for (const vip of vips.slice(0, NAMED)) {
    const packets = vip.rate ? ` ${rate(vip.rate.packets_per_second)}/s` : "";
    lines.push([vip.problem ? "bad" : "", `${vip.address}${packets}`]);
  }
  if (vips.length > NAMED) lines.push(["quiet", `and ${vips.length - NAMED} more`]);
  return { id: `node ${node.name}`, lines, className: kind === "bad" ? "bad" : vips.length ? "owner" : "" };
}

function services(now) {
  const boxes = now.services.slice(0, SERVICES).map((service) => ({
    id: `service ${service.name}`,
    lines: [
      ["title", service.name],
      [service.taking === 0 ? "bad" : service.failing ? "wait" : "quiet", `${service.taking} of ${service.backends} in use`],
    ],
    className: service.taking === 0 ? "bad" : "",
  }));
  const more = now.status.services - boxes.length;
  if (more > 0) boxes.push({ id: "more", lines: [["quiet", `and ${more} more services`]], className: "" });
  return boxes;
}

const heightOf = (box) => box.lines.length * LINE + 14;

function inColumns(layers, width) {
  const widths = [0.14, 0.34, 0.34].map((share) => share * width);
  const between = (width - widths.reduce((a, b) => a + b)) / 2;
  const heights = layers.map((layer) => layer.reduce((sum, box) => sum + heightOf(box) + GAP, -GAP));
  const body = Math.max(...heights, 60);
  const boxes = [];
  let x = 1;
  layers.forEach((layer, at) => {
    let y = 2 + (body - heights[at]) / 2;
    for (const box of layer) {
      boxes.push({ ...box, x, y, width: widths[at] - 2, height: heightOf(box) });
      y += heightOf(box) + GAP;
    }
    x += widths[at] + between;
  });
  // Below there is room for what goes back.
  return { boxes, height: body + 40, body };
}

function inRows(layers, width) {
  const boxes = [];
  let y = 2;
  for (const layer of layers) {
    const columns = Math.min(Math.max(1, layer.length), width < 480 ? 2 : 3);
    const each = (width - GAP * (columns - 1) - 2) / columns;
    for (let first = 0; first < layer.length; first += columns) {
      const row = layer.slice(first, first + columns);
      const height = Math.max(...row.map(heightOf));
      row.forEach((box, at) => boxes.push({ ...box, x: 1 + at * (each + GAP), y, width: each, height }));
      y += height + GAP;
    }
    y += GAP;
  }
  return { boxes, height: y + 4, body: y - 2 * GAP };
}

/** From clients to the owners, from these to the services of their VIPs, and back. */
function edges({ boxes, body, height }, now, isWide) {
  const box = new Map(boxes.map((of) => [of.id, of]));
  const clients = box.get("clients");
  const join = (from, to, busy, title) => {
    if (!from || !to) return null;
    const [x1, y1, x2, y2] = isWide
      ? [from.x + from.width, from.y + from.height / 2, to.x, to.y + to.height / 2]
      : [from.x + from.width / 2, from.y + from.height, to.x + to.width / 2, to.y];
    const path = isWide
      ? `M${x1} ${y1}C${(x1 + x2) / 2} ${y1} ${(x1 + x2) / 2} ${y2} ${x2} ${y2}`
      : `M${x1} ${y1}C${x1} ${(y1 + y2) / 2} ${x2} ${(y1 + y2) / 2} ${x2} ${y2}`;
    return { path, busy, title };
  };
  const all = [];
  const owner = new Map(now.vips.map((vip) => [vip.address, vip]));
  for (const node of now.nodes) {
    const own = now.vips.filter((vip) => vip.owner === node.name);
    const busy = own.some((vip) => vip.rate?.packets_per_second > 0);
    if (own.length) all.push(join(clients, box.get(`node ${node.name}`), busy, `clients to ${node.name}`));
  }
  for (const service of now.services) {
    const vip = owner.get(service.vip);
    const busy = vip?.rate?.packets_per_second > 0 && service.taking > 0;
    if (vip?.owner) {
      all.push(join(box.get(`node ${vip.owner}`), box.get(`service ${service.name}`), busy, `${vip.owner} to ${service.name}`));
    }
  }
  if (isWide && now.services.length) {
    const last = boxes.filter((of) => of.id.startsWith("service ")).at(-1);
    const [from, to] = [last.x + last.width / 2, clients.x + clients.width / 2];
    const [start, end] = [last.y + last.height, clients.y + clients.height];
    // Such a curve comes three quarters of the way to these points: its lowest is just above the edge.
    const low = (height - 6 - (start + end) / 8) / 0.75;
    const path = `M${from} ${start}C${from} ${low} ${to} ${low} ${to} ${end}`;
    const busy = now.vips.some((vip) => vip.rate?.packets_per_second > 0);
    all.push({ path, busy, answer: true, title: "backends answer the clients directly" });
  }
  return all.filter(Boolean);
}

function shown(box, svg) {
  const rect = svg("rect", { x: box.x, y: box.y, width: box.width, height: box.height, rx: 8, class: box.className });
  const letters = Math.floor((box.width - 18) / LETTER);
  const texts = box.lines.map(([className, text], at) => {
    const made = svg("text", { x: box.x + 10, y: box.y + 18 + at * LINE, class: className });
    made.textContent = text.length > letters ? `${text.slice(0, letters - 1)}…` : text;
    made.append(titled(svg, text));
    return made;
  });
  return [rect, ...texts];
}

/** The same for those who do not see it. */
function words(now, vips) {
  const owners = [...vips].filter(([, own]) => own.length).map(([name, own]) => `${name} owns ${own.map((vip) => vip.address).join(", ")}`);
  return `${owners.join("; ") || "No node owns a VIP"}. Clients send to the owner, backends answer the clients directly.`;
}
