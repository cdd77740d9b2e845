// Topics, requests and messages over one WebSocket to a gmultisocket server. The API is described in gmultisocket.d.ts.

const encoder = new TextEncoder(), decoder = new TextDecoder("utf-8", {fatal: true}), lenient = new TextDecoder();
const TO_ALL = 1, TO_DESTINATION = 2, INTERNAL = 4, CONTROL = 32;
const PATTERN = /^((\*|[^.*>]+)\.)*([*>]|[^.*>]+)$/;

const bytes = content =>
  content?.byteLength >= 0 // A buffer, or a view of one.
  ? new Uint8Array(content.buffer ?? content, content.byteOffset, content.byteLength)
  : encoder.encode(typeof content === "string" ? content : JSON.stringify(content));
const joined = (...parts) => {
  const data = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let end = 0;
  for (const part of parts) { data.set(part, end); end += part.length; }
  return data;
};
const number = (size, value) => size ? [...number(size - 1, Math.floor(value / 256)), value % 256] : [];
const read = (data, at, size) => data.subarray(at, at + size).reduce((value, byte) => 256 * value + byte, 0);
let lastId = Math.floor(Math.random() * 1e9);
const newId = () => lastId = lastId % 1e9 + 1;

const checked = pattern => {
  if (!PATTERN.test(pattern)) throw new TypeError(`not a pattern: ${pattern}`);
  return pattern;
};
/** Return an expression that the topics of a pattern match. */
const matcher = pattern =>
  new RegExp(`^${pattern.replace(/[^\w*>]/g, "\\$&").replace(/\*/g, "[^.]+").replace(">", ".+")}$`, "s");

/** Return a 0x05: subscribe, and send what follows the positions. */
export const encodeAsk = ({id, retained, recover, pattern}, positions) => {
  const text = bytes(pattern), past = positions.flat().flatMap(value => number(8, value));
  return joined([5], number(4, id), [retained | recover << 1, positions.length], past, number(2, text.length), text);
};

/** Read what a publisher sends, a publication or control. Return null for what none sends. */
export const decode = (isControl, content) => {
  try {
    const kind = isControl ? content[0] : -1, size = content.length;
    // A text with its length in front, and what follows it.
    const counted = at => {
      const end = at + 2 + read(content, at, 2);
      return end <= size && [decoder.decode(content.subarray(at + 2, end)), content.subarray(end)];
    };
    const publication = at => { const [topic, body] = counted(at); return {kind, topic, body}; };
    if (kind < 0) return publication(0);
    if (kind === 2) return {kind, pattern: checked(decoder.decode(content.subarray(1)))};
    if (kind === 3) { const [pattern, why] = counted(1); return {kind, pattern: checked(pattern), reason: lenient.decode(why)}; }
    if (kind === 4 && size === 1) return {kind};
    const id = read(content, 1, 4), [epoch, offset, previous] = [5, 13, 21].map(at => read(content, at, 8));
    if (epoch >= 2 ** 53 || offset >= 2 ** 53) return null;
    if (kind === 6 && size === 22) return {kind, id, epoch, offset, flags: content[21]};
    if (kind === 7 && previous < offset) return {...publication(29), id, epoch, offset, previous};
  } catch { /* It is too short, or it is no text. */ }
  return null;
};

export class Message {
  constructor(content, topic = "") { this.content = content; this.topic = topic; }
  text() { return lenient.decode(this.content); }
  json() { return JSON.parse(this.text()); }
}

export class RequestError extends Error {
  name = "RequestError";
  constructor(kind, why) { super(why ? `${kind}: ${why}` : kind); this.kind = kind; }
}

const emit = (client, type, event) => client.dispatchEvent(Object.assign(new Event(type), event));
/** Count a message that is lost. Return that it was not sent. */
const drop = client => { client.dropped++; return false; };

// Ports: what becomes of a channel. The connection sets port.send while it is open, and port.why if the server has none.
// What is in port.waiting fails then, and so does what comes later.

const failUnsupported = ({why, waiting}) => why && waiting.forEach(one => one.fail("unsupported", why));

/** Give an object the functions resolve and fail. Return the promise that they settle; they may call another one first. */
const makePromise = (one, settled) => new Promise((resolve, reject) => {
  one.resolve = value => { settled?.(); resolve(value); };
  one.fail = (kind, why) => { settled?.(); reject(new RequestError(kind, why)); };
});

/** A subscription or a channel, and its inner side. Without a handler it keeps the last 1024 messages for an iterator. */
const makeFeed = (port, handler, lost, leave, send) => {
  const queue = [], loops = [], {waiting} = port;
  const keep = message => { if (queue.push(message) > 1024) lost(queue.shift()); };
  const inner = {
    take(message) {
      // It goes to the loop that has waited longest, and not by the queue: another loop could be faster there.
      try {
        (handler ?? loops.shift() ?? keep)(message);
      } catch (error) { (globalThis.reportError ?? console.error)(error); }
    },
  };
  const feed = inner.feed = {
    send,
    ready: makePromise(inner),
    close() {
      if (!waiting.delete(inner)) return;
      inner.fail("aborted");
      leave(inner);
      loops.forEach(end => end());
    },
    async* [Symbol.asyncIterator]() {
      try {
        while (queue.length || waiting.has(inner)) {
          const message = queue.shift() ?? await new Promise(resolve => loops.push(resolve));
          if (message) yield message;
        }
      } finally { feed.close(); }
    },
  };
  feed.ready.catch(() => {});
  waiting.set(inner, inner);
  failUnsupported(port);
  return inner;
};

/** For a Pub. Each pattern has positions of its own: what comes for two patterns is given to both. */
const makeTopics = (port, client) => {
  const patterns = new Map(), wild = new Set(), asks = new Map();
  const heard = new Map(); // By epoch: the last offset that came live by this connection.
  let timer;

  const tell = (kind, {pattern}, path) => port.send?.(joined([kind], bytes(pattern)), true, path);
  const forget = interest => {
    tell(0, interest);
    interest.epochs.clear();
    asks.delete(interest.id);
  };
  const ask = (interest, path) => {
    // Retained values come without being asked for.
    if (interest.recover || !interest.retained) {
      // One publisher that asks who is there joins those that were asked before.
      if (!path) asks.set(interest.id = newId(), interest);
      const positions = [...interest.epochs].slice(-16).map(([epoch, {offset}]) => [epoch, offset]);
      port.send(encodeAsk(interest, positions), true, path);
    }
    tell(1, interest, path);
  };
  /** Return the patterns that match a topic. */
  const match = topic => [...wild, patterns.get(topic)].filter(each => each?.topics.test(topic));
  const give = ({feeds}, topic, body) => feeds.forEach(each => each.take(new Message(body, topic)));

  // Positions

  const gap = ({pattern}, topic, reason) => emit(client, "gap", {pattern, topic, reason});
  /** Tell that histories have gone: the one that a source had until now, and, if unclaimed says so, those without one. */
  const expire = (interest, unclaimed, source) => interest.epochs.forEach(({sources}, epoch, epochs) => {
    if (sources.delete(source) || unclaimed && !sources.size) {
      if (!sources.size) epochs.delete(epoch);
      gap(interest, null, "gone");
    }
  });
  const advance = (history, offset) => { if (offset > history.offset) history.offset = offset; };
  const takeReplay = ({id, epoch, offset, flags}, source) => {
    const interest = asks.get(id);
    if (!interest) return;
    // Of a history that a pattern has met. Nothing is missing up to offset. What was missing up to base was told, and told
    // says that this goes for the replay that has not ended. last: the last offset of each topic. sources: the paths of
    // the publishers that have it, in this connection.
    const known = interest.epochs.get(epoch);
    const history = known ?? {sources: new Set(), last: new Map(), offset: 0, told: true};
    // A publisher has one history. What nobody has claimed may be what it had before it was started again.
    if (!history.sources.has(source)) expire(interest, !known, source);
    interest.epochs.set(epoch, history);
    if (!history.sources.size) {
      if (flags & 2 || known && flags & 4 && offset > history.offset) {
        history.told = true;
        gap(interest, null, "history");
      }
      if (history.told) history.base = offset;
    }
    history.sources.add(source);
    if (flags & 8) {
      history.live = true;
      history.told = false;
      advance(history, offset);
    }
    interest.feeds.forEach(each => each.resolve());
  };
  const takePositioned = ({id, epoch, offset, previous, topic, body}) => {
    for (const interest of id ? [asks.get(id)] : match(topic)) {
      const history = interest?.epochs.get(epoch);
      // Before the end of its replay, what is live for a pattern is a part of that.
      if (id ? !history?.sources.size : !history?.live) continue;
      if (id) advance(history, offset);
      const {base, last} = history, told = history.told && offset <= base;
      const before = Math.max(last.get(topic) ?? 0, told ? 0 : base);
      if (offset <= before) continue;
      last.delete(topic); // What was heard of last stands last.
      last.set(topic, offset);
      const [oldest] = last.keys();
      if (last.size > 65536) last.delete(oldest);
      if (!told && previous > before) gap(interest, topic, "overflow");
      give(interest, topic, body);
    }
    if (!id) heard.set(epoch, offset);
  };

  return {
    join(pattern, handler, {retained = true, recover = true}) {
      let interest = patterns.get(checked(pattern));
      // The second subscription wants the present values too: all of it is asked for again.
      if (interest) forget(interest);
      else {
        interest = {pattern, topics: matcher(pattern), feeds: new Set(), epochs: new Map()};
        patterns.set(pattern, interest);
        if (/[*>]/.test(pattern)) wild.add(interest);
      }
      const {feeds} = interest;
      const inner = makeFeed(port, handler, ({topic}) => gap(interest, topic, "overflow"), () => {
        feeds.delete(inner);
        if (feeds.size) return;
        forget(interest);
        patterns.delete(pattern);
        wild.delete(interest);
      });
      interest.retained ||= retained;
      interest.recover ||= recover;
      feeds.add(inner);
      if (port.send) ask(interest);
      return inner.feed;
    },
    opened() {
      patterns.forEach(each => ask(each));
      timer = setTimeout(() => patterns.forEach(each => expire(each, true)), 5000);
    },
    lost() {
      clearTimeout(timer);
      patterns.forEach(({epochs}) => epochs.forEach((history, epoch) => {
        if (history.live) advance(history, heard.get(epoch));
        history.live = false;
        history.sources.clear();
      }));
      heard.clear();
      asks.clear();
    },
    take(flags, content, path) {
      if (flags & ~CONTROL) return;
      const message = decode(flags, content) ?? {}, {kind, pattern, reason, topic, body} = message;
      const interest = patterns.get(pattern);
      if (kind < 0) match(topic).forEach(each => give(each, topic, body));
      else if (kind === 2) interest?.feeds.forEach(each => each.resolve());
      else if (kind === 3 && interest) {
        interest.epochs.clear();
        interest.feeds.forEach(each => each.fail("refused", reason));
        emit(client, "refused", {pattern, reason});
      } else if (kind === 4 && path.length) {
        // A publisher behind a switch asks who is there. The first id stands for this connection, whatever it is.
        const {send} = port, back = joined([0, 0, 0, 1], path);
        setTimeout(() => send === port.send && patterns.forEach(each => ask(each, back)), 2000 * Math.random());
      } else if (kind === 6) takeReplay(message, path.join());
      else if (kind === 7) takePositioned(message);
    },
  };
};

/** For a Rep. It gets 32 requests at a time: a server closes the channel of a page that piles them up. */
const makeRequests = (port, client) => {
  const {waiting} = port;
  const pump = () => {
    if (!port.send) return;
    for (const one of [...waiting.values()].slice(0, 32)) {
      one.sent ||= port.send(one.request);
      if (!one.sent) one.fail("offline");
    }
  };
  return {
    async join(content, timeout, signal) {
      const id = newId(), one = {request: joined(number(4, id), bytes(content))};
      const abort = () => one.fail("aborted"), timer = setTimeout(() => one.fail(one.sent ? "timeout" : "offline"), timeout);
      const answer = makePromise(one, () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
        waiting.delete(id);
        if (one.sent) pump();
      });
      waiting.set(id, one);
      failUnsupported(port);
      signal?.addEventListener("abort", abort);
      if (signal?.aborted) abort();
      else if (client.state === "closed" || waiting.size > (port.send ? 1024 : 64)) one.fail("offline", drop(client));
      else pump();
      return answer;
    },
    opened: pump,
    lost(why) { waiting.forEach(one => one.sent && one.fail("gone", why)); },
    take(flags, content) {
      const failed = flags === INTERNAL && content[0] === 16 ? 1 : 0;
      if (flags && !failed || content.length < 4 + failed) return;
      const one = waiting.get(read(content, failed, 4)), rest = new Message(content.subarray(4 + failed));
      if (failed) one?.fail("refused", rest.text());
      else one?.resolve(rest);
    },
  };
};

/** For any other protocol, or a Socket. */
const makePlain = (port, client) => ({
  join(handler) {
    const lost = () => drop(client);
    const inner = makeFeed(port, handler, lost, () => {}, content => port.send?.(bytes(content)) ?? lost());
    if (port.send) inner.resolve();
    return inner.feed;
  },
  opened() { port.waiting.forEach(each => each.resolve()); },
  lost() {},
  take(flags, content) { if (!flags) port.waiting.forEach(each => each.take(new Message(content))); },
});

/** The WebSocket, again whenever it is lost, and the ports of its channels. */
const makeConnection = (client, url, options) => {
  let socket, list, attempts = 0, timer, silence;
  const ports = [];
  const isSession = () => socket.protocol === "multisocket.session";

  const watch = method => {
    for (const type of ["visibilitychange", "online", "offline"]) globalThis[method]?.(type, check);
  };
  /** The page is seen again, or the network has changed: is the connection still there? */
  const check = () => {
    if (globalThis.document?.hidden) return;
    if (client.state === "waiting" && navigator.onLine) dial();
    if (client.state !== "open" || !isSession()) return;
    tell({ping: 0});
    clearTimeout(silence);
    silence = setTimeout(() => down({reason: "timeout"}), options.timeout);
  };

  const dial = async () => {
    clearTimeout(timer);
    client.state = "connecting";
    let own = socket = {};
    const current = handle => event => own === socket && handle(event);
    try {
      const place = new URL(await (typeof url === "function" ? url() : url), globalThis.location);
      if (own !== socket) return;
      place.protocol = place.protocol.replace("http", "ws");
      own = socket = new (options.WebSocket ?? WebSocket)(place.href, ["multisocket.session", "multisocket.binary"]);
      own.binaryType = "arraybuffer";
      // A plain server has one channel, which fits everything.
      own.onopen = current(() => isSession() || up([{channel: 0}]));
      own.onmessage = current(({data}) => take(new Uint8Array(data)));
      // Not everywhere is an error followed by a close.
      own.onclose = own.onerror = current(down);
    } catch (error) {
      current(down)({reason: `${error}`});
    }
  };
  const up = channels => {
    list = channels;
    client.state = "open";
    // A connection that lasts is a good one.
    timer = setTimeout(() => { attempts = 0; }, 5000);
    ports.forEach(open);
    emit(client, "open", {channels});
  };
  const down = ({code = 1006, reason = "connection failed"}, closed = [4401, 4403].includes(code)) => {
    if (client.state === "closed") return;
    const last = socket;
    socket = {};
    last.close?.();
    clearTimeout(timer);
    clearTimeout(silence);
    let retry = null;
    if (closed) watch("removeEventListener");
    else {
      retry = Math.min(options.maxDelay, options.minDelay * 2 ** attempts) * (1 + Math.random()) / 2;
      timer = setTimeout(dial, retry);
      attempts += code > 4000 ? 4 : 1; // 4429 and 4503: not now.
    }
    client.state = closed ? "closed" : "waiting";
    ports.forEach(port => lose(port, reason));
    emit(client, "close", {code, reason, retry});
    if (closed && code > 4000) emit(client, "refused", {code, reason});
  };

  // Channels

  const portsOf = number => ports.filter(({channel}) => channel === number);
  const open = port => {
    const {kind, name} = port;
    const found = list.find(one => one.channel === 0
      || (!name || one.name === name) && (kind ? one.protocol === kind : !["pub", "rep"].includes(one.protocol)));
    port.why = !found && `the server has only ${JSON.stringify(list)}`;
    failUnsupported(port);
    if (!found) return;
    const {channel} = found;
    if (channel && !portsOf(channel).length) tell({open: channel});
    port.channel = channel;
    port.send = (...frame) => send(channel, ...frame);
    port.opened();
  };
  const lose = (port, reason) => {
    if (!port.send) return;
    port.send = port.channel = null;
    port.lost(reason);
  };

  const take = data => {
    clearTimeout(silence);
    let channel = 0, frame = data;
    if (isSession()) {
      [channel] = data;
      frame = data.subarray(1);
      if (!channel) return takeText(frame);
    }
    const [flags, , hops, distance] = frame, end = 8 + 4 * hops, start = end + 4 * distance;
    if (distance > 1 || start + read(frame, 4, 4) !== frame.length) return;
    portsOf(channel).forEach(port => port.take(flags & ~3, frame.subarray(start), frame.subarray(8, end)));
  };
  const takeText = data => {
    const text = new Message(data).json(), {close, reason} = text, own = socket;
    if (Array.isArray(text)) return up(text);
    if (!close) return;
    tell({close});
    for (const port of portsOf(close)) {
      lose(port, reason);
      setTimeout(() => own === socket && open(port), options.minDelay * (1 + Math.random()));
    }
  };
  /** Send by the session's own channel. */
  const tell = value => socket.send(joined([0], bytes(value)));

  /** Send a frame. Return whether not too much waits to leave already. */
  const send = (channel, content, isControl, path = []) => {
    if (socket.readyState !== 1 || socket.bufferedAmount > options.buffer) return drop(client);
    const flags = isControl ? CONTROL | (path.length ? TO_DESTINATION : TO_ALL) : 0;
    const head = [flags, 16, 0, path.length / 4]; // 16: the ttl.
    socket.send(joined(channel ? [channel] : [], head, number(4, content.length), path, content));
    return true;
  };

  /** Call join of a port, which is made if it is not there. */
  const use = (kind, make, name = "", ...values) => {
    let port = ports.find(each => each.kind === kind && each.name === name);
    if (!port) {
      ports.push(port = {kind, name, waiting: new Map()});
      Object.assign(port, make(port, client));
      if (client.state === "open") open(port);
    }
    return port.join(...values);
  };
  return {
    use,
    down,
    connect() {
      if (client.state === "closed") watch("addEventListener");
      else if (client.state !== "waiting") return;
      dial();
    },
  };
};

export class Client extends EventTarget {
  #options; #connection;
  state = "closed"; dropped = 0;

  constructor(url, options) {
    super();
    this.#options = {minDelay: 500, maxDelay: 30000, timeout: 10000, buffer: 1 << 20, ...options};
    this.#connection = makeConnection(this, url, this.#options);
    this.connect();
  }
  subscribe(pattern, handler, options = {}) {
    return this.#connection.use("pub", makeTopics, options.channel, pattern, handler, options);
  }
  request(content, {timeout = this.#options.timeout, signal, channel} = {}) {
    return this.#connection.use("rep", makeRequests, channel, content, timeout, signal);
  }
  channel(name, handler) { return this.#connection.use("", makePlain, name, handler); }
  connect() { this.#connection.connect(); }
  close() { this.#connection.down({code: 1000, reason: "close()"}, true); }
}
