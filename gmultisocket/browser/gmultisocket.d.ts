/** What may be sent: bytes as they are, text as UTF-8, anything else as JSON. */
export type Content = string | ArrayBuffer | ArrayBufferView | object | number | boolean | null;

/** A message that has come. */
export class Message {
  constructor(content: Uint8Array, topic?: string);
  readonly content: Uint8Array;
  /** The topic of a publication; "" for other messages. */
  readonly topic: string;
  /** The content as text. */
  text(): string;
  /** The content as JSON. Throws a SyntaxError if it is none. */
  json<T = any>(): T;
}

/**
 * - `timeout`: it was sent, and no answer came in time.
 * - `gone`: the connection was lost before the answer came. Nobody knows whether it was carried out.
 * - `offline`: it was never sent.
 * - `aborted`: by an AbortSignal, or by close().
 * - `refused`: the server has refused the subscription, or its handler has failed.
 * - `unsupported`: the server has no channel for it.
 */
export type RequestErrorKind = "timeout" | "gone" | "offline" | "aborted" | "refused" | "unsupported";

export class RequestError extends Error {
  constructor(kind: RequestErrorKind, why?: string);
  readonly kind: RequestErrorKind;
}

/**
 * A subscription. Without a handler it is iterated over, and keeps the last 1024 messages for that:
 * `for await (const message of client.subscribe("orders.>"))`. Several loops over it share the messages: each one goes to
 * the loop that has waited longest. A loop that is left ends it, for the other loops too.
 */
export interface Subscription extends AsyncIterable<Message> {
  /**
   * Resolves when the server has acknowledged the subscription for the first time: what is published from then on comes.
   * Rejects with a RequestError if it is refused, unsupported or closed before. Nobody has to wait for it.
   */
  readonly ready: Promise<void>;
  /** End it. May be repeated. */
  close(): void;
}

/** A channel of another protocol than Pub and Rep. */
export interface Channel extends AsyncIterable<Message> {
  /** Resolves when messages can be sent for the first time. Rejects if the server has no such channel. */
  readonly ready: Promise<void>;
  /** Send a message. Returns false, and counts it in `client.dropped`, if it cannot be sent now. */
  send(content: Content): boolean;
  /** Receive nothing more. */
  close(): void;
}

export interface SubscribeOptions {
  /** Get the retained values of the topics, now and after each reconnect. True by default. */
  retained?: boolean;
  /** After a reconnect get what was missed, if the server keeps it. True by default. */
  recover?: boolean;
  /** The name of the channel. By default the first one that is a Pub. */
  channel?: string;
}

export interface RequestOptions {
  /** Milliseconds until it fails. By default that of the client. */
  timeout?: number;
  signal?: AbortSignal;
  /** The name of the channel. By default the first one that is a Rep. */
  channel?: string;
}

export interface ClientOptions {
  /** Milliseconds before the first attempt to connect again. Later pauses are twice as long each, all at random. 500. */
  minDelay?: number;
  /** The longest pause, in milliseconds. 30,000. */
  maxDelay?: number;
  /** Milliseconds until a request fails, and until a connection that does not answer is given up. 10,000. */
  timeout?: number;
  /** Bytes that may wait to leave; with more, nothing is sent. 1 MiB. */
  buffer?: number;
  /** The class of WebSockets, where the platform has none, such as that of the package `ws`. */
  WebSocket?: new (url: string, protocols: string[]) => any;
}

export interface ChannelInfo {
  channel: number;
  name?: string;
  protocol?: string;
}

export interface ClientEvents {
  /** It is connected. */
  open: Event & {readonly channels: ChannelInfo[]};
  /** The connection is lost, or an attempt has failed. `retry`: milliseconds until the next attempt; null for none. */
  close: Event & {readonly code: number; readonly reason: string; readonly retry: number | null};
  /**
   * Publications that match a pattern are missing, and will not come; with a topic, they are of this topic only.
   * `overflow`: they were dropped because this side was too slow. `history`: the server does not keep them any more.
   * `gone`: the server has lost its history.
   */
  gap: Event & {readonly pattern: string; readonly topic: string | null; readonly reason: "overflow" | "history" | "gone"};
  /** The server refuses a pattern; or, with a code (4401: log in, 4403: never), the connection: it is not retried. */
  refused: Event & {readonly pattern?: string; readonly code?: number; readonly reason: string};
}

/**
 * A connection to a server, which is made at once, and again whenever it is lost.
 *
 * @param url `/ws`, `https://example.org/ws`, `wss://...`; or a function that returns it, or a promise of it, and is called
 * before each attempt: so a token in it can be new each time.
 */
export class Client extends EventTarget {
  constructor(url: string | URL | (() => string | URL | Promise<string | URL>), options?: ClientOptions);
  readonly state: "connecting" | "open" | "waiting" | "closed";
  /** Messages that this side has lost, because they could not be sent or nobody took them. */
  readonly dropped: number;
  /**
   * Get the publications whose topics match a pattern: `orders.eu.created`, `orders.*.created`, `orders.>`.
   * They come in order. Throws a TypeError if it is no pattern.
   */
  subscribe(pattern: string, handler?: ((message: Message) => void) | null, options?: SubscribeOptions): Subscription;
  /** Send a request to a Rep, and get the answer. Rejects with a RequestError. It is sent once, and never again. */
  request(content: Content, options?: RequestOptions): Promise<Message>;
  /** Send and receive by a channel of another protocol, or of a plain Socket. By default the first such channel. */
  channel(name?: string, handler?: ((message: Message) => void) | null): Channel;
  /** Connect again: after close(), after a refusal, or at once instead of after the pause. */
  connect(): void;
  /** Close the connection. Requests fail; subscriptions stay, for connect(). */
  close(): void;
  addEventListener<T extends keyof ClientEvents>(type: T, listener: (event: ClientEvents[T]) => void, options?: boolean | AddEventListenerOptions): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions): void;
  removeEventListener<T extends keyof ClientEvents>(type: T, listener: (event: ClientEvents[T]) => void, options?: boolean | EventListenerOptions): void;
  removeEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | EventListenerOptions): void;
}

export interface Ask {
  id: number;
  retained: boolean;
  recover: boolean;
  pattern: string;
}

/** For tests: the bytes of a subscription with positions (0x05): epoch and offset of each. */
export function encodeAsk(ask: Ask, positions: [number, number][]): Uint8Array;
/** For tests: what a publisher has sent, null if no publisher sends that. */
export function decode(isControl: boolean, content: Uint8Array): {kind: number; [name: string]: any} | null;
