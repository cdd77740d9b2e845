// Topics, requests and messages over one WebSocket to a gmultisocket server. The API is described in gmultisocket.d.ts.

const encoder = new TextEncoder(), decoder = new TextDecoder("utf-8", {fatal: true}), lenient = new TextDecoder();
const TO_DESTINATION = 2, INTERNAL = 4, CONTROL = 32;
const PATTERN = /^(>|(\*|[^.*>]+)(\.(\*|[^.*>]+))*(\.>)?)$/;

const bytes = content =>
  content instanceof ArrayBuffer ? new Uint8Array(content)
  : ArrayBuffer.isView(content) ? new Uint8Array(content.buffer, content.byteOffset, content.byteLength)
  : encoder.encode(typeof content === "string" ? content : JSON.stringify(content));
const joined = (...parts) => {
  const data = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  parts.reduce((at, part) => { data.set(part, at); return at + part.length; }, 0);
  return data;
};
const number = (size, value) => Array.from({length: size}, (_, at) => Math.floor(value / 256 ** (size - 1 - at)) % 256);
const read = (data, at, size) => data.subarray(at, at + size).reduce((value, byte) => 256 * value + byte, 0);
const newId = used => {
  const [id] = crypto.getRandomValues(new Uint32Array(1));
  return id && !used.has(id) ? id : newId(used);
};

const checked = pattern => {
  if (!PATTERN.test(pattern)) throw new TypeError(`not a pattern: ${pattern}`);
  return pattern;
};
const matches = (pattern, topic) => pattern.every((token, index) => ["*", ">", topic[index]].includes(token))
  && (pattern.at(-1) === ">" ? topic.length >= pattern.length : topic.length === pattern.length);

/** Return a 0x05: subscribe, and send what follows the positions. */
export const encodeAsk = ({id, retained, recover, positions, pattern}) => {
  const text = encoder.encode(pattern), past = positions.flat().flatMap(value => number(8, value));
  return joined([5], number(4, id), [retained | recover << 1, positions.length], past, number(2, text.length), text);
};

/** Read what a publisher sends. Return null for what none sends. */
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
  constructor(content, topic = "") { Object.assign(this, {content, topic}); }
  text() { return lenient.decode(this.content); }
  json() { return JSON.parse(this.text()); }
}

export class RequestError extends Error {
  name = "RequestError";
  constructor(kind, why) { super(why ? `${kind}: ${why}` : kind); this.kind = kind; }
}

/** A subscription or a channel, and its inner side. Without a handler it keeps the last 1024 messages for an iterator. */
const makeFeed = (handler, lost, leave, send) => {
  const queue = [], inner = {};
  let wake = () => {}, closed = false;
  inner.take = message => {
    if (handler) {
      try { handler(message); } catch (error) { (globalThis.reportError ?? console.error)(error); }
      return;
    }
    if (queue.push(message) > 1024) lost(queue.shift());
    wake();
  };
  const ready = new Promise((resolve, reject) => {
    inner.resolve = resolve;
    inner.fail = (kind, why) => reject(new RequestError(kind, why));
  });
  ready.catch(() => {});
  const close = () => {
    if (closed) return;
    closed = true;
    inner.fail("aborted");
    leave(inner);
    wake();
  };
  async function* iterate() {
    try {
      while (queue.length || !closed) {
        if (queue.length) yield queue.shift();
        else await new Promise(resolve => { wake = resolve; });
      }
    } finally { close(); }
  }
  inner.feed = {ready, send, close, [Symbol.asyncIterator]: iterate};
  return inner;
};

// Ports: what becomes of a channel. The client sets port.send while it is open, and port.why if the server has none. What
// waiting() returns fails then, and so does what comes later.

/** For a Pub. Each pattern has positions of its own: what comes for two patterns is given to both. */
const makeTopics = (port, client) => {
  const patterns = new Map(), wild = new Set(), asks = new Map();
  const heard = new Map(); // By epoch: the last offset that came live by this connection.
  let timer;

  const tell = (kind, {text}, ...where) => port.send?.(joined([kind], encoder.encode(text)), CONTROL, ...where);
  const forget = pattern => {
    tell(0, pattern);
    asks.delete(pattern.ask);
    pattern.meetings.clear();
  };
  const ask = (pattern, ...where) => {
    const {text, meetings, retained, recover} = pattern;
    // Retained values come without being asked for.
    if (recover || !retained) {
      // One publisher that asks who is there joins those that were asked before.
      if (!where.length || !pattern.ask) {
        asks.delete(pattern.ask);
        asks.set(pattern.ask = newId(asks), pattern);
      }
      const positions = [...meetings].slice(-16).map(([epoch, {position}]) => [epoch, position]);
      port.send(encodeAsk({id: pattern.ask, retained, recover, positions, pattern: text}), CONTROL, ...where);
    }
    tell(1, pattern, ...where);
  };
  /** Return the patterns that match a topic. */
  const match = topic => {
    const tokens = topic.split("."), literal = patterns.get(topic);
    return [...wild].filter(pattern => matches(pattern.tokens, tokens)).concat(literal ?? []);
  };
  const give = ({feeds}, {topic, body}) => feeds.forEach(each => each.take(new Message(body, topic)));

  // Positions

  const gap = ({text}, topic, reason) => client.emit("gap", {pattern: text, topic, reason});
  /** The histories that no publisher has claimed in this connection have gone. */
  const expire = pattern => {
    for (const [epoch, meeting] of pattern.meetings) {
      if (!meeting.ask) { pattern.meetings.delete(epoch); gap(pattern, null, "gone"); }
    }
  };
  const advance = (meeting, offset, name = "position") => { meeting[name] = Math.max(meeting[name], offset ?? 0); };
  const takeReplay = ({id, epoch, offset, flags}) => {
    const pattern = asks.get(id);
    if (!pattern) return;
    // Of a pattern and a history: up to base and position nothing is missing, and the last offset of each topic.
    const known = pattern.meetings.get(epoch), meeting = known ?? {base: 0, position: 0, last: new Map()};
    if (!known) {
      expire(pattern);
      pattern.meetings.set(epoch, meeting);
    }
    if (meeting.ask !== id) {
      const missed = flags & 2 || known && flags & 4 && offset > meeting.position;
      Object.assign(meeting, {ask: id, live: false, told: missed || !known});
      if (meeting.told) advance(meeting, offset, "base");
      if (missed) gap(pattern, null, "history");
    }
    if (flags & 8) {
      meeting.live = true;
      advance(meeting, offset);
    }
    pattern.feeds.forEach(each => each.resolve());
  };
  /** Give a publication to a pattern, unless it has had it. What is missing before it was told already, or is now. */
  const check = (pattern, {base, last: table}, told, message) => {
    const {offset, previous, topic} = message, last = Math.max(table.get(topic) ?? 0, told ? 0 : base);
    if (offset <= last) return;
    table.delete(topic); // What was heard of last stands last.
    table.set(topic, offset);
    if (table.size > 65536) table.delete(table.keys().next().value);
    if (!told && previous > last) gap(pattern, topic, "overflow");
    give(pattern, message);
  };
  const takePositioned = message => {
    const {id, epoch, offset, topic} = message;
    for (const pattern of id ? [asks.get(id)] : match(topic)) {
      const meeting = pattern?.meetings.get(epoch);
      // Before the end of its replay, what is live for a pattern is a part of that.
      if (!meeting || (id ? meeting.ask !== id : !meeting.live)) continue;
      if (id) advance(meeting, offset);
      check(pattern, meeting, id && meeting.told && offset <= meeting.base, message);
    }
    if (!id) heard.set(epoch, Math.max(heard.get(epoch) ?? 0, offset));
  };

  return Object.assign(port, {
    subscribe(text, handler, {retained = true, recover = true}) {
      let pattern = patterns.get(checked(text));
      // The second subscription wants the present values too: all of it is asked for again.
      if (pattern) forget(pattern);
      else {
        pattern = {text, tokens: text.split("."), feeds: new Set(), meetings: new Map(), ask: 0};
        patterns.set(text, pattern);
        if (/[*>]/.test(text)) wild.add(pattern);
      }
      const inner = makeFeed(handler, ({topic}) => gap(pattern, topic, "overflow"), each => {
        pattern.feeds.delete(each);
        if (pattern.feeds.size) return;
        forget(pattern);
        patterns.delete(text);
        wild.delete(pattern);
      });
      pattern.retained ||= retained;
      pattern.recover ||= recover;
      pattern.feeds.add(inner);
      if (port.send) ask(pattern);
      else if (port.why) inner.fail("unsupported", port.why);
      return inner.feed;
    },
    opened() {
      patterns.forEach(pattern => ask(pattern));
      timer = setTimeout(() => patterns.forEach(expire), 5000);
    },
    lost() {
      clearTimeout(timer);
      for (const {meetings} of patterns.values()) {
        for (const [epoch, meeting] of meetings) {
          if (meeting.live) advance(meeting, heard.get(epoch));
          Object.assign(meeting, {ask: 0, live: false});
        }
      }
      heard.clear();
    },
    waiting: () => [...patterns.values()].flatMap(({feeds}) => [...feeds]),
    take(flags, content, path) {
      const message = decode(flags === CONTROL, content);
      if (!message || flags & ~CONTROL) return;
      const {kind, pattern: text, reason} = message, pattern = patterns.get(text);
      if (kind < 0) match(message.topic).forEach(each => give(each, message));
      else if (kind === 2) pattern?.feeds.forEach(each => each.resolve());
      else if (kind === 3 && pattern) {
        pattern.meetings.clear();
        pattern.feeds.forEach(each => each.fail("refused", reason));
        client.emit("refused", {pattern: text, reason});
      } else if (kind === 4 && path.length) {
        // A publisher behind a switch asks who is there. The first id stands for this connection, whatever it is.
        const {send} = port, back = joined(number(4, 1), path);
        setTimeout(() => send === port.send && patterns.forEach(each => ask(each, TO_DESTINATION, back)), 2000 * Math.random());
      } else if (kind === 6) takeReplay(message);
      else if (kind === 7) takePositioned(message);
    },
  });
};

/** For a Rep. It gets 32 requests at a time: a server closes the channel of a page that piles them up. */
const makeRequests = (port, client) => {
  const waiting = new Map();
  let sent = 0;
  const pump = () => {
    for (const one of waiting.values()) {
      if (!port.send || sent >= 32) return;
      if (one.sent) continue;
      one.sent = port.send(one.request);
      if (one.sent) sent++;
      else one.fail("offline", "too much waits to be sent");
    }
  };
  return Object.assign(port, {
    request: (content, {timeout, signal}) => new Promise((resolve, reject) => {
      const id = newId(waiting), one = {request: joined(number(4, id), bytes(content))};
      const end = (settle, value) => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
        waiting.delete(id);
        settle(value);
        if (one.sent) { sent--; pump(); }
      };
      one.resolve = value => end(resolve, value);
      one.fail = (kind, why) => end(reject, new RequestError(kind, why));
      const abort = () => one.fail("aborted"), timer = setTimeout(() => one.fail(one.sent ? "timeout" : "offline"), timeout);
      if (signal?.aborted) return abort();
      signal?.addEventListener("abort", abort);
      waiting.set(id, one);
      if (port.why) one.fail("unsupported", port.why);
      else if (client.state === "closed" || waiting.size > (port.send ? 1024 : 64)) one.fail("offline", client.drop());
      else pump();
    }),
    opened: pump,
    lost(why) { waiting.forEach(one => one.sent && one.fail("gone", why)); },
    waiting: () => [...waiting.values()],
    take(flags, content) {
      const failed = flags === INTERNAL && content[0] === 16, answer = failed ? content.subarray(1) : content;
      if (flags && !failed || answer.length < 4) return;
      const one = waiting.get(read(answer, 0, 4)), rest = new Message(answer.subarray(4));
      if (failed) one?.fail("refused", rest.text());
      else one?.resolve(rest);
    },
  });
};

/** For any other protocol, or a Socket. */
const makePlain = (port, client) => {
  const feeds = new Set(), drop = () => client.drop();
  return Object.assign(port, {
    join(handler) {
      const inner = makeFeed(handler, drop, each => feeds.delete(each), content => port.send?.(bytes(content)) || !drop());
      feeds.add(inner);
      if (port.send) inner.resolve();
      else if (port.why) inner.fail("unsupported", port.why);
      return inner.feed;
    },
    opened() { feeds.forEach(each => each.resolve()); },
    lost() {},
    waiting: () => feeds,
    take(flags, content) { if (!flags) feeds.forEach(each => each.take(new Message(content))); },
  });
};

export class Client extends EventTarget {
  #url; #options; #socket; #list = []; #ports = []; #attempts = 0; #timer; #silence; #since;
  state = "closed"; dropped = 0;

  constructor(url, options) {
    super();
    this.#url = url;
    this.#options = {minDelay: 500, maxDelay: 30000, timeout: 10000, buffer: 1 << 20, WebSocket: globalThis.WebSocket, ...options};
    this.connect();
  }
  subscribe(pattern, handler, options = {}) { return this.#port("pub", makeTopics, options.channel).subscribe(pattern, handler, options); }
  request(content, {timeout = this.#options.timeout, signal, channel} = {}) {
    return this.#port("rep", makeRequests, channel).request(content, {timeout, signal});
  }
  channel(name, handler) { return this.#port("", makePlain, name).join(handler); }

  connect() {
    if (this.state === "closed") this.#watch("addEventListener");
    else if (this.state !== "waiting") return;
    this.#dial();
  }
  close() { this.#down({code: 1000, reason: "closed by this side"}, true); }

  // For the parts of the client.
  emit(type, event) { this.dispatchEvent(Object.assign(new Event(type), event)); }
  drop() { this.dropped++; return "nothing can be sent now"; }

  #watch(method) {
    globalThis.document?.[method]("visibilitychange", this.#check);
    for (const type of ["online", "offline"]) globalThis[method]?.(type, this.#check);
  }
  /** The page is seen again, or the network has changed: is the connection still there? */
  #check = () => {
    if (globalThis.document?.visibilityState === "hidden") return;
    if (this.state === "waiting" && navigator.onLine) this.#dial();
    if (this.state !== "open" || !this.#isSession) return;
    this.#tell({ping: 0});
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#down({reason: "no answer"}), this.#options.timeout);
  };

  async #dial() {
    clearTimeout(this.#timer);
    this.state = "connecting";
    const attempt = this.#socket = {};
    try {
      const url = new URL(await (typeof this.#url === "function" ? this.#url() : this.#url), globalThis.location?.href);
      if (attempt !== this.#socket) return;
      url.protocol = url.protocol.replace("http", "ws");
      const socket = this.#socket = new this.#options.WebSocket(url.href, ["multisocket.session", "multisocket.binary"]);
      socket.binaryType = "arraybuffer";
      const current = handle => event => socket === this.#socket && handle(event);
      // A plain server has one channel, which fits everything.
      socket.onopen = current(() => this.#isSession || this.#up([{channel: 0}]));
      socket.onmessage = current(({data}) => this.#take(new Uint8Array(data)));
      // Not everywhere is an error followed by a close.
      socket.onclose = socket.onerror = current(event => this.#down(event));
    } catch (error) {
      if (attempt === this.#socket) this.#down({reason: `${error}`});
    }
  }
  get #isSession() { return this.#socket.protocol === "multisocket.session"; }

  #up(channels) {
    this.#list = channels;
    this.#since = Date.now();
    this.state = "open";
    this.#ports.forEach(port => this.#open(port));
    this.emit("open", {channels});
  }
  #down({code = 1006, reason = "the connection failed"}, closed = [4401, 4403].includes(code)) {
    if (this.state === "closed") return;
    const socket = this.#socket, {minDelay, maxDelay} = this.#options;
    this.#socket = {};
    socket.close?.();
    clearTimeout(this.#timer);
    clearTimeout(this.#silence);
    // A connection that has lasted was a good one.
    if (this.state === "open" && Date.now() - this.#since > 5000) this.#attempts = 0;
    const delay = Math.min(maxDelay, minDelay * 2 ** this.#attempts) * (0.5 + Math.random() / 2), retry = closed ? null : delay;
    this.#attempts += [4429, 4503].includes(code) ? 4 : 1;
    this.state = closed ? "closed" : "waiting";
    this.#ports.forEach(port => this.#lose(port, reason));
    if (closed) this.#watch("removeEventListener");
    else this.#timer = setTimeout(() => this.#dial(), delay);
    this.emit("close", {code, reason, retry});
    if (closed && code > 4000) this.emit("refused", {code, reason});
  }

  // Channels

  #port(kind, make, name = "") {
    let port = this.#ports.find(each => each.kind === kind && each.name === name);
    if (!port) {
      this.#ports.push(port = make({kind, name}, this));
      if (this.state === "open") this.#open(port);
    }
    return port;
  }
  #open(port) {
    const {kind, name} = port;
    const found = this.#list.find(one => one.channel === 0
      || (!name || one.name === name) && (kind ? one.protocol === kind : !["pub", "rep"].includes(one.protocol)));
    port.why = found ? "" : `the server has no such channel, but ${JSON.stringify(this.#list)}`;
    if (!found) return port.waiting().forEach(one => one.fail("unsupported", port.why));
    const {channel} = found;
    if (channel && !this.#ports.some(each => each.number === channel)) this.#tell({open: channel});
    port.number = channel;
    port.send = (content, ...where) => this.#send(channel, content, ...where);
    port.opened();
  }
  #lose(port, reason) {
    if (!port.send) return;
    port.send = port.number = null;
    port.lost(reason);
  }

  #take(data) {
    clearTimeout(this.#silence);
    const [channel, frame] = this.#isSession ? [data[0], data.subarray(1)] : [0, data];
    if (this.#isSession && !channel) return this.#takeText(frame);
    const [flags, , hops, distance] = frame, end = 8 + 4 * hops, start = end + 4 * distance;
    if (frame.length < 8 || distance > 1 || start + read(frame, 4, 4) !== frame.length) return;
    for (const port of this.#ports) if (port.number === channel) port.take(flags & ~3, frame.subarray(start), frame.subarray(8, end));
  }
  #takeText(data) {
    const text = new Message(data).json() ?? {}, {close, reason} = text, socket = this.#socket;
    if (Array.isArray(text)) this.#up(text);
    if (!close) return;
    this.#tell({close});
    for (const port of this.#ports.filter(({number}) => number === close)) {
      this.#lose(port, reason);
      setTimeout(() => socket === this.#socket && this.#open(port), this.#options.minDelay * (1 + Math.random()));
    }
  }
  #tell(value) { this.#socket.send(joined([0], bytes(value))); }

  /** Send a frame. Return whether not too much waits to leave already. */
  #send(channel, content, flags = 0, type = 0, path = []) {
    const socket = this.#socket;
    if (socket.readyState !== 1 || socket.bufferedAmount > this.#options.buffer) return !this.drop();
    // 16: the ttl.
    const head = [...(this.#isSession ? [channel] : []), flags | type, 16, 0, path.length / 4, ...number(4, content.length)];
    socket.send(joined(head, path, content));
    return true;
  }
}
