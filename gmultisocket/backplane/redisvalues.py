"""How Redis keeps the present values of topics: scripts that change them and publish in one step, and that read them.

Keys, each ``gmultisocket:`` + prefix + name; those of the history, which share the numbers, are in ``redishistory.py``:

* ``values``, a hash: by channel, what was published there: a mark, numbers, and the content;
* ``topics``, a sorted set of the channels, by name: the channels below some first tokens are found without a look at
  all others;
* ``order``, a sorted set of the channels, by the number of the change;
* ``size``, the bytes of all values.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from ..protocol.subscriptions import is_literal
from .engine import MAX_VALUES, MAX_VALUES_SIZE
from .redishistory import KEYS, Limits, key_names, numbering
from .rediswire import (
    RETAINED,
    UNRETAINED,
    Channels,
    bad_reply,
    encode_command,
    encode_mark,
    first_tokens,
    pairs,
    shortest,
)

__all__ = ["Fetch", "ValueCommands"]

#: In front of both scripts that change something, behind that of the history.
_FORGET: Final = """
local function forget(channel)
  local size = redis.call('HSTRLEN', KEYS[5], channel)
  if redis.call('HDEL', KEYS[5], channel) == 1 then
    local was = redis.call('ZSCORE', KEYS[7], channel)
    redis.call('ZREM', KEYS[6], channel)
    redis.call('ZREM', KEYS[7], channel)
    redis.call('DECRBY', KEYS[8], size)
    if epoch > 0 and was and #redis.call('XRANGE', KEYS[2], was, was) == 0 then
      redis.call('ZADD', KEYS[4], was, channel)
    end
  end
end
if epoch == 0 then last = now() end
"""
_CHANGE: Final = numbering(Limits()) + _FORGET
#: Arguments: the channel, the mark, the content, the most values, the most bytes of them, and "1" if the topic has
#: history. Its first change is the one that a server without memory refuses.
_RETAIN: Final = """
local channel, is_logged = ARGV[1], ARGV[6] == '1'
if epoch == 0 and is_logged then begin(last) end
last = last + 1
local number, previous = string.format('%.0f', last), 0
if epoch > 0 then previous = tonumber(redis.call('ZSCORE', KEYS[3], channel) or forgotten) end
local message = ARGV[2] .. struct.pack('>I8I8I8', last, previous, epoch) .. ARGV[3]
local before = redis.call('HSTRLEN', KEYS[5], channel)
if is_logged then append(channel, message, number) else save() end
if epoch > 0 then
  redis.call('ZADD', KEYS[3], number, channel)
  redis.call('ZREM', KEYS[4], channel)
end
redis.call('HSET', KEYS[5], channel, message)
redis.call('ZADD', KEYS[6], 0, channel)
redis.call('ZADD', KEYS[7], number, channel)
local size = redis.call('INCRBY', KEYS[8], #message - before)
local count = redis.call('HLEN', KEYS[5])
while count > 1 and (count > tonumber(ARGV[4]) or size > tonumber(ARGV[5])) do
  forget(redis.call('ZRANGE', KEYS[7], 0, 0)[1])
  size = tonumber(redis.call('GET', KEYS[8]))
  count = count - 1
end
if forget_channels(KEYS[3]) or forget_channels(KEYS[4]) then save() end
redis.call('PUBLISH', channel, message)
return is_logged and last or 0
"""
#: Arguments: the channel, and the mark.
_UNRETAIN: Final = """
last = last + 1
save()
forget(ARGV[1])
if forget_channels(KEYS[4]) then save() end
redis.call('PUBLISH', ARGV[1], ARGV[2] .. struct.pack('>I8I8I8', last, 0, epoch))
return 0
"""
#: Arguments: the most bytes that one step returns, and the channels; or "", the first and the last channel of a range.
#: It returns whether these were all, how many channels it has looked at, the last of them, and channels and values.
_FETCH: Final = """
local channels, all = {}, 1
if ARGV[2] == '' then
  channels = redis.call('ZRANGEBYLEX', KEYS[6], ARGV[3], ARGV[4], 'LIMIT', 0, 512)
  if #channels == 512 then all = 0 end
else
  for number = 2, #ARGV do channels[number - 1] = ARGV[number] end
end
local found, size = {}, 0
for number, channel in ipairs(channels) do
  local value = redis.call('HGET', KEYS[5], channel)
  if value then
    found[#found + 1] = channel
    found[#found + 1] = value
    size = size + #value
    if size > tonumber(ARGV[1]) and number < #channels then return {0, number, channel, found} end
  end
end
return {all, #channels, channels[#channels] or '', found}
"""
#: The most bytes of values that one step returns, less the last value.
_STEP_BYTES: Final = 1 << 20
#: What follows the separator: the end of a range of all channels that begin with tokens.
_BEHIND_SEPARATOR: Final = b"/"


class ValueCommands:
    """Makes the commands.

    Args:
        prefix: in front of each topic.
        origin: of the plane.
    """

    __slots__ = ("_keys", "_origin", "max_size", "max_values")

    def __init__(self, prefix: str, origin: bytes) -> None:
        self._keys = key_names(prefix, (*KEYS, "values", "topics", "order", "size"))
        self._origin = origin
        self.max_values = MAX_VALUES
        self.max_size = MAX_VALUES_SIZE

    def _script(self, script: str, arguments: Iterable[bytes]) -> bytes:
        return encode_command(b"EVAL", script.encode(), b"%d" % len(self._keys), *self._keys, *arguments)

    def retain(self, channel: bytes, content: bytes, number: int, is_logged: bool) -> bytes:
        """Return the command by which a publication becomes the present value of a channel.

        Args:
            channel, content, number: of the publication.
            is_logged: its topic has history.
        """
        mark = encode_mark(RETAINED, self._origin, number)
        limits = b"%d" % self.max_values, b"%d" % self.max_size
        return self._script(_CHANGE + _RETAIN, (channel, mark, content, *limits, b"%d" % is_logged))

    def unretain(self, channel: bytes, number: int) -> bytes:
        """Return the command by which a channel has no present value any more."""
        return self._script(_CHANGE + _UNRETAIN, (channel, encode_mark(UNRETAINED, self._origin, number)))

    def fetch(self, arguments: Sequence[bytes]) -> bytes:
        """Return the command for a step of a :class:`Fetch`."""
        return self._script(_FETCH, (b"%d" % _STEP_BYTES, *arguments))


class Fetch:
    """Reads the present values that patterns match, and perhaps others, in steps.

    Args:
        patterns: the patterns.
        channels: translates topics.
    """

    __slots__ = ("_steps",)

    def __init__(self, patterns: Sequence[str], channels: Channels) -> None:
        literals = [channels.encode(pattern) for pattern in patterns if is_literal(pattern)]
        #: The arguments of each step that is still to be done.
        self._steps: list[list[bytes]] = [literals] if literals else []
        for tokens in shortest({first_tokens(pattern) for pattern in patterns if not is_literal(pattern)}):
            start = channels.encode_tokens(tokens)
            bounds = [b"[" + start, b"(" + start[:-1] + _BEHIND_SEPARATOR] if start else [b"-", b"+"]
            self._steps.append([b"", *bounds])

    @property
    def next(self) -> list[bytes] | None:
        """The arguments of the next step, None after the last one."""
        return self._steps[-1] if self._steps else None

    def take(self, reply: Any) -> list[tuple[bytes, bytes]]:
        """Return the channels and values in the reply to a step, and go on to the next one.

        Raises:
            BadMessage: it is no such reply.
        """
        if not isinstance(reply, list) or len(reply) != 4:
            raise bad_reply()
        everything, count, last, found = reply
        step = self._steps[-1]
        if everything:
            self._steps.pop()
        elif step[0]:
            del step[:count]
        else:
            step[1] = b"(" + last
        return pairs(found)
