// What the page subscribes to, from the Pub of the server that it came from.

const CONTROL_TO_ALL = 0x21;
const SUBSCRIBE = 1;
const TTL = 16;
const HEADER = 8;

/**
 * Subscribe to patterns, again after each reconnect.
 *
 * @param {string[]} patterns
 * @param {(topic: string, text: string) => void} onMessage
 * @param {(open: boolean) => void} onState
 */
export function follow(patterns, onMessage, onState) {
  const url = new URL("ws", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  let pause = 500;
  const connect = () => {
    const socket = new WebSocket(url, ["multisocket.binary"]);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      for (const pattern of patterns) socket.send(subscription(pattern));
    };
    socket.onmessage = ({data}) => {
      const message = publication(data);
      if (message === null) return;
      pause = 500;
      onState(true);
      onMessage(...message);
    };
    socket.onclose = () => {
      onState(false);
      setTimeout(connect, pause * (0.5 + Math.random() / 2));
      pause = Math.min(pause * 1.5, 5000);
    };
  };
  connect();
}

function subscription(pattern) {
  const name = new TextEncoder().encode(pattern);
  const frame = new Uint8Array(HEADER + 1 + name.length);
  frame.set([CONTROL_TO_ALL, TTL]);
  new DataView(frame.buffer).setUint32(4, 1 + name.length);
  frame[HEADER] = SUBSCRIBE;
  frame.set(name, HEADER + 1);
  return frame;
}

/** Return the topic and the text of a frame, null if it is no publication. */
function publication(data) {
  const frame = new Uint8Array(data);
  const [flags, , hops, distance] = frame;
  if (flags & 0xfc) return null;
  const content = frame.subarray(HEADER + 4 * (hops + distance));
  const start = 2 + (content[0] << 8 | content[1]);
  const decoder = new TextDecoder();
  return [decoder.decode(content.subarray(2, start)), decoder.decode(content.subarray(start))];
}
