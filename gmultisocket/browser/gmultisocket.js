// Topics, requests and messages over one WebSocket to a gmultisocket server. The API is described in gmultisocket.d.ts.

const encoder = new TextEncoder(), decoder = new TextDecoder("utf-8", {fatal: true}), lenient = new TextDecoder();
const TO_DESTINATION = 2, INTERNAL = 4, CONTROL = 32, NONE = new Uint8Array(0);
const PATTERN = /^(>|(\*|[^.*>]+)(\.(\*|[^.*>]+))*(\.>)?)$/;

const bytes = content =>
  content instanceof ArrayBuffer ? new Uint8Array(content)
  : ArrayBuffer.isView(content) ? new Uint8Array(content.buffer, content.byteOffset, content.byteLength)
  : encoder.encode(typeof content === "string" ? content : JSON.stringify(content));
const view = data => new DataView(data.buffer, data.byteOffset, data.byteLength);
const joined = (...parts) => {
  const data = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) { data.set(part, at); at += part.length; }
  return data;
};
const u16 = value => [value >> 8, value & 255];
const u32 = value => [value >>> 24, value >>> 16 & 255, ...u16(value & 65535)];
const u64 = value => [...u32(value / 2 ** 32), ...u32(value % 2 ** 32)];
const getU64 = (data, at) => data.getUint32(at) * 2 ** 32 + data.getUint32(at + 4);
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
  const text = encoder.encode(pattern);
  return joined([5], u32(id), [retained | recover << 1, positions.length], positions.flat().flatMap(u64), u16(text.length), text);
};

/** Read what a publisher sends. Return null for what none sends. */
export const decode = (isControl, content) => {
  try {
    const data = view(content), kind = isControl ? content[0] : -1, size = content.length;
    const counted = at => {
      const end = at + 2 + data.getUint16(at);
      return end <= size && [decoder.decode(content.subarray(at + 2, end)), content.subarray(end)];
    };
    const publication = at => { const [topic, body] = counted(at); return {kind, topic, body}; };
    if (kind < 0) return publication(0);
    if (kind === 2) return {kind, pattern: checked(decoder.decode(content.subarray(1)))};
    if (kind === 3) { const [pattern, why] = counted(1); return {kind, pattern: checked(pattern), reason: lenient.decode(why)}; }
    if (kind === 4 && size === 1) return {kind};
    const id = data.getUint32(1), epoch = getU64(data, 5), offset = getU64(data, 13), position = {id, epoch, offset};
    if (epoch >= 2 ** 53 || offset >= 2 ** 53) return null;
    if (kind === 6 && size === 22) return {kind, ...position, flags: content[21]};
    const previous = getU64(data, 21);
    if (kind === 7 && previous < offset) return {...publication(29), ...position, previous};
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

/** What subscribe() and channel() return. Without a handler it keeps the last 1024 messages for an iterator. */
class Feed {
  #queue = []; #wake = () => {}; #closed = false; #parts;
  constructor(parts) {
    this.#parts = parts;
    this.ready = new Promise((resolve, reject) => Object.assign(parts, {resolve, reject}));
    this.ready.catch(() => {});
  }
  take(message) {
    const {handler, lost} = this.#parts;
    if (handler) {
      try { handler(message); } catch (error) { (globalThis.reportError ?? console.error)(error); }
      return;
    }
    if (this.#queue.push(message) > 1024) lost(this.#queue.shift());
    this.#wake();
  }
  send(content) { return this.#parts.send(content); }
  close() {
    if (this.#closed) return;
    this.#closed = true;
    this.#parts.reject(new RequestError("aborted"));
    this.#parts.leave();
    this.#wake();
  }
  async *[Symbol.asyncIterator]() {
    try {
      while (this.#queue.length || !this.#closed) {
        if (this.#queue.length) yield this.#queue.shift();
        else await new Promise(resolve => { this.#wake = resolve; });
      }
    } finally { this.close(); }
  }
}

/** The channel of a Pub. Each pattern has positions of its own: what comes for two patterns is given to both. */
class Topics {
  #client; #patterns = new Map(); #wild = new Set(); #found = new Map(); #asks = new Map();
  #heard = new Map(); // By epoch: the last offset that came live by this connection.
  #timer;
  constructor(client) { this.#client = client; }

  subscribe(text, handler, {retained = true, recover = true}) {
    let pattern = this.#patterns.get(checked(text));
    // The second subscription wants the present values too: all of it is asked for again.
    if (pattern) this.#forget(pattern);
    else {
      pattern = {text, tokens: text.split("."), feeds: new Map(), meetings: new Map(), ask: 0};
      this.#patterns.set(text, pattern);
      if (/[*>]/.test(text)) this.#wild.add(pattern);
      this.#found.clear();
    }
    const parts = {handler, lost: ({topic}) => this.#gap(pattern, topic, "overflow"), leave: () => this.#leave(pattern, feed)};
    const feed = new Feed(parts);
    Object.assign(pattern, {retained: retained || pattern.retained, recover: recover || pattern.recover}).feeds.set(feed, parts);
    if (this.send) this.#subscribe(pattern);
    else if (this.why) parts.reject(new RequestError("unsupported", this.why));
    return feed;
  }
  #leave(pattern, feed) {
    pattern.feeds.delete(feed);
    if (pattern.feeds.size) return;
    this.#forget(pattern);
    this.#patterns.delete(pattern.text);
    this.#wild.delete(pattern);
    this.#found.clear();
  }
  #forget(pattern) {
    this.send?.(joined([0], encoder.encode(pattern.text)), CONTROL);
    this.#asks.delete(pattern.ask);
    pattern.meetings.clear();
  }
  #subscribe(pattern, ...where) {
    const {text, meetings, retained, recover} = pattern;
    // Retained values come without being asked for.
    if (recover || !retained) {
      // One publisher that asks who is there joins those that were asked before.
      if (!where.length || !pattern.ask) {
        this.#asks.delete(pattern.ask);
        this.#asks.set(pattern.ask = newId(this.#asks), pattern);
      }
      const positions = [...meetings].slice(-16).map(([epoch, {position}]) => [epoch, position]);
      this.send(encodeAsk({id: pattern.ask, retained, recover, positions, pattern: text}), CONTROL, ...where);
    }
    this.send(joined([1], encoder.encode(text)), CONTROL, ...where);
  }

  opened(send) {
    Object.assign(this, {send, why: ""});
    this.#patterns.forEach(pattern => this.#subscribe(pattern));
    this.#timer = setTimeout(() => this.#patterns.forEach(pattern => this.#expire(pattern)), 5000);
  }
  lost() {
    clearTimeout(this.#timer);
    this.send = null;
    for (const {meetings} of this.#patterns.values()) {
      for (const [epoch, meeting] of meetings) {
        if (meeting.live) meeting.position = Math.max(meeting.position, this.#heard.get(epoch) ?? 0);
        Object.assign(meeting, {ask: 0, live: false});
      }
    }
    this.#heard.clear();
  }
  missing(why) {
    this.why = why;
    for (const {feeds} of this.#patterns.values()) feeds.forEach(({reject}) => reject(new RequestError("unsupported", why)));
  }

  take(flags, content, path) {
    const message = decode(flags === CONTROL, content);
    if (!message || flags & ~CONTROL) return;
    const {kind, pattern: text, reason} = message, pattern = this.#patterns.get(text);
    if (kind < 0) for (const each of this.#match(message.topic)) this.#give(each, message);
    else if (kind === 2) pattern?.feeds.forEach(({resolve}) => resolve());
    else if (kind === 3 && pattern) {
      pattern.meetings.clear();
      pattern.feeds.forEach(({reject}) => reject(new RequestError("refused", reason)));
      this.#client.emit("refused", {pattern: text, reason});
    } else if (kind === 4 && path.length) {
      // A publisher behind a switch asks who is there. The first id stands for this connection, whatever it is.
      const {send} = this, back = joined(u32(1), path);
      setTimeout(() => send === this.send && this.#patterns.forEach(each => this.#subscribe(each, TO_DESTINATION, back)), 2000 * Math.random());
    } else if (kind === 6) this.#takeReplay(message);
    else if (kind === 7) this.#takePositioned(message);
  }
  #give({feeds}, {topic, body}) { feeds.forEach((_, feed) => feed.take(new Message(body, topic))); }
  /** Return the patterns that match a topic. */
  #match(topic) {
    let found = this.#found.get(topic);
    if (!found) {
      const tokens = topic.split("."), literal = this.#patterns.get(topic);
      found = [...this.#wild].filter(pattern => matches(pattern.tokens, tokens)).concat(literal ?? []);
      if (this.#found.size > 65535) this.#found.clear();
      this.#found.set(topic, found);
    }
    return found;
  }

  // Positions

  #gap({text}, topic, reason) { this.#client.emit("gap", {pattern: text, topic, reason}); }
  /** The histories that no publisher has claimed in this connection have gone. */
  #expire(pattern) {
    for (const [epoch, {ask}] of pattern.meetings) {
      if (!ask) { pattern.meetings.delete(epoch); this.#gap(pattern, null, "gone"); }
    }
  }
  #takeReplay({id, epoch, offset, flags}) {
    const pattern = this.#asks.get(id);
    if (!pattern) return;
    // Of a pattern and a history: up to base and position nothing is missing, and the last offset of each topic.
    const known = pattern.meetings.get(epoch), meeting = known ?? {base: 0, position: 0, last: new Map()};
    if (!known) {
      this.#expire(pattern);
      pattern.meetings.set(epoch, meeting);
    }
    if (meeting.ask !== id) {
      const gap = flags & 2 || known && flags & 4 && offset > meeting.position;
      Object.assign(meeting, {ask: id, live: false, told: gap || !known});
      if (meeting.told) meeting.base = Math.max(meeting.base, offset);
      if (gap) this.#gap(pattern, null, "history");
    }
    if (flags & 8) {
      meeting.live = true;
      meeting.position = Math.max(meeting.position, offset);
    }
    pattern.feeds.forEach(({resolve}) => resolve());
  }
  #takePositioned(message) {
    const {id, epoch, offset, topic} = message, asked = this.#asks.get(id);
    if (!id) {
      this.#heard.set(epoch, Math.max(this.#heard.get(epoch) ?? 0, offset));
      // Before the end of its replay, what is live for a pattern is a part of that.
      for (const pattern of this.#match(topic)) if (pattern.meetings.get(epoch)?.live) this.#check(pattern, message, false);
      return;
    }
    const meeting = asked?.meetings.get(epoch);
    if (meeting?.ask !== id) return;
    meeting.position = Math.max(meeting.position, offset);
    this.#check(asked, message, meeting.told && offset <= meeting.base);
  }
  /** Give a publication to a pattern, unless it has had it. What is missing before it was told already, or is now. */
  #check(pattern, message, told) {
    const {epoch, offset, previous, topic} = message, {base, last: table} = pattern.meetings.get(epoch);
    const last = Math.max(table.get(topic) ?? 0, told ? 0 : base);
    if (offset <= last) return;
    table.delete(topic); // What was heard of last stands last.
    table.set(topic, offset);
    if (table.size > 65536) table.delete(table.keys().next().value);
    if (!told && previous > last) this.#gap(pattern, topic, "overflow");
    this.#give(pattern, message);
  }
}

/** The channel of a Rep. It gets 32 requests at a time: a server closes the channel of a page that piles them up. */
class Requests {
  #client; #waiting = new Map(); #sent = 0;
  constructor(client) { this.#client = client; }

  request(content, {timeout, signal}) {
    return new Promise((resolve, reject) => {
      const id = newId(this.#waiting), abort = () => end(reject, new RequestError("aborted"));
      const end = (settle, value) => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
        this.#waiting.delete(id);
        settle(value);
        if (!one.sent) return;
        this.#sent--;
        this.#pump();
      };
      const one = {request: joined(u32(id), bytes(content)), resolve: value => end(resolve, value)};
      one.fail = (kind, why) => end(reject, new RequestError(kind, why));
      const timer = setTimeout(() => one.fail(one.sent ? "timeout" : "offline"), timeout);
      if (signal?.aborted) return abort();
      signal?.addEventListener("abort", abort);
      this.#waiting.set(id, one);
      if (this.why) one.fail("unsupported", this.why);
      else if (this.#client.state === "closed" || this.#waiting.size > (this.send ? 1024 : 64)) one.fail("offline", this.#client.drop());
      else this.#pump();
    });
  }
  #pump() {
    for (const one of this.#waiting.values()) {
      if (!this.send || this.#sent >= 32) return;
      if (one.sent) continue;
      one.sent = this.send(one.request);
      if (one.sent) this.#sent++;
      else one.fail("offline", "too much waits to be sent");
    }
  }
  opened(send) { Object.assign(this, {send, why: ""}); this.#pump(); }
  lost(why) { this.send = null; this.#waiting.forEach(one => one.sent && one.fail("gone", why)); }
  missing(why) { this.why = why; this.#waiting.forEach(one => one.fail("unsupported", why)); }
  take(flags, content) {
    const failed = flags === INTERNAL && content[0] === 16, answer = failed ? content.subarray(1) : content;
    if (flags && !failed || answer.length < 4) return;
    const one = this.#waiting.get(view(answer).getUint32(0)), rest = new Message(answer.subarray(4));
    if (failed) one?.fail("refused", rest.text());
    else one?.resolve(rest);
  }
}

/** The channel of any other protocol, or of a Socket. */
class Plain {
  #client; #feeds = new Map();
  constructor(client) { this.#client = client; }
  join(handler) {
    const send = content => this.send?.(bytes(content)) || !this.#client.drop();
    const parts = {handler, send, lost: () => this.#client.drop(), leave: () => this.#feeds.delete(feed)}, feed = new Feed(parts);
    this.#feeds.set(feed, parts);
    if (this.send) parts.resolve();
    else if (this.why) this.missing(this.why);
    return feed;
  }
  opened(send) { Object.assign(this, {send, why: ""}); this.#feeds.forEach(({resolve}) => resolve()); }
  lost() { this.send = null; }
  missing(why) { this.why = why; this.#feeds.forEach(({reject}) => reject(new RequestError("unsupported", why))); }
  take(flags, content) { if (!flags) this.#feeds.forEach((_, feed) => feed.take(new Message(content))); }
}

export class Client extends EventTarget {
  #url; #options; #socket; #list = []; #ports = []; #attempts = 0; #timer; #alive; #since; #heard;
  state = "closed"; dropped = 0;

  constructor(url, options) {
    super();
    this.#url = url;
    this.#options = {minDelay: 500, maxDelay: 30000, timeout: 10000, buffer: 1 << 20, WebSocket: globalThis.WebSocket, ...options};
    this.connect();
  }
  subscribe(pattern, handler, options = {}) { return this.#port("pub", Topics, options.channel).subscribe(pattern, handler, options); }
  request(content, {timeout = this.#options.timeout, signal, channel} = {}) {
    return this.#port("rep", Requests, channel).request(content, {timeout, signal});
  }
  channel(name, handler) { return this.#port("", Plain, name).join(handler); }

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
    for (const [target, type] of [["document", "visibilitychange"], ["window", "online"], ["window", "offline"]]) {
      globalThis[target]?.[method](type, this.#check);
    }
  }
  /** The page is seen again, or the network has changed: is the connection still there? */
  #check = () => {
    const socket = this.#socket;
    if (document.visibilityState === "hidden") return;
    if (this.state === "waiting" && navigator.onLine) this.#dial();
    if (this.state !== "open" || !this.#isSession) return;
    this.#heard = false;
    this.#tell({ping: 0});
    clearTimeout(this.#alive);
    this.#alive = setTimeout(() => socket === this.#socket && !this.#heard && this.#down({code: 1006, reason: "no answer"}),
      this.#options.timeout);
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
      // A plain server has one channel, which fits everything.
      socket.onopen = () => socket === this.#socket && !this.#isSession && this.#up([{channel: 0}]);
      socket.onmessage = ({data}) => socket === this.#socket && this.#take(new Uint8Array(data));
      socket.onclose = event => socket === this.#socket && this.#down(event);
      // Not everywhere is it followed by a close.
      socket.onerror = () => socket === this.#socket && this.#down({code: 1006, reason: "the connection failed"});
    } catch (error) {
      if (attempt === this.#socket) this.#down({code: 1006, reason: `${error}`});
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
  #down({code, reason}, closed = [4401, 4403].includes(code)) {
    if (this.state === "closed") return;
    const socket = this.#socket, {minDelay, maxDelay} = this.#options;
    this.#socket = {};
    socket.close?.();
    clearTimeout(this.#timer);
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

  #port(kind, Port, name = "") {
    let port = this.#ports.find(each => each.kind === kind && each.name === name);
    if (!port) {
      this.#ports.push(port = Object.assign(new Port(this), {kind, name}));
      if (this.state === "open") this.#open(port);
    }
    return port;
  }
  #open(port) {
    const {kind, name} = port;
    const found = this.#list.find(one => one.channel === 0
      || (!name || one.name === name) && (kind ? one.protocol === kind : !["pub", "rep"].includes(one.protocol)));
    if (!found) return port.missing(`the server has no such channel, but ${JSON.stringify(this.#list)}`);
    const {channel} = found;
    if (channel && !this.#ports.some(each => each.number === channel)) this.#tell({open: channel});
    port.number = channel;
    port.opened((content, flags = 0, ...path) => this.#send(channel, flags, content, ...path));
  }
  #lose(port, reason) {
    if (port.number === undefined) return;
    port.number = undefined;
    port.lost(reason);
  }

  #take(data) {
    this.#heard = true;
    const session = this.#isSession, channel = session ? data[0] : 0, frame = data.subarray(session ? 1 : 0);
    if (session && !channel) return this.#takeText(frame);
    const [flags, , hops, distance] = frame, end = 8 + 4 * hops, start = end + 4 * distance;
    if (frame.length < 8 || distance > 1 || start + view(frame).getUint32(4) !== frame.length) return;
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
  #send(channel, flags, content, type = 0, path = NONE) {
    const socket = this.#socket;
    if (socket.readyState !== 1 || socket.bufferedAmount > this.#options.buffer) return !this.drop();
    // 16: the ttl.
    const head = [...(this.#isSession ? [channel] : []), flags | type, 16, 0, path.length / 4, ...u32(content.length)];
    socket.send(joined(head, path, content));
    return true;
  }
}
