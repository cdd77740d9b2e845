function connect(url, receive) {
  const socket = new WebSocket(url, ["multisocket.binary"]);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({data}) => {
    const frame = new Uint8Array(data), [, , hops, distance] = frame;
    receive(frame.subarray(8 + 4 * (hops + distance)));
  };
  return socket;
}

function send(socket, content) {
  const frame = new Uint8Array(8 + content.length);
  frame[1] = 16; // ttl; type, hops and distance are 0
  new DataView(frame.buffer).setUint32(4, content.length);
  frame.set(content, 8);
  socket.send(frame);
}
