"""How Redis keeps the history of topics: scripts that number, keep and publish in one step, and that read.

Keys, each ``gmultisocket:`` + prefix + name; those of present values are in ``redisvalues.py``:

* ``state``, numbers of 8 bytes, the last one of 4: the number of the last change, of a value or of a topic with
  history; the ``epoch``, which names the history; ``forgotten``, which is at least the last number of each channel that
  is not in ``offsets`` any more; the ``floor``, behind which all topics with history are kept; and the size of the
  ``log`` and its count. They are no digits, as to make and read these takes most of a script's time;
* ``log``, a stream: the publications of topics with history, by their numbers;
* ``offsets``, a sorted set of channels, by the number of their last publication with a position;
* ``lost``, the same of channels whose present value is gone and was not in the ``log``;
* ``patterns``, a set: of the topics with history. It grows only.

A message with a position has 24 bytes between its mark and its content: its number, that of the one before it in the
same channel, and the epoch. So a literal pattern is read by following these numbers back from the last one. For one
with wildcards, the whole stream is read.

If the keys are deleted, the next script that publishes begins another history. All who take part see another epoch in
the messages, and connect again.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from ..errors import BadMessage, BadTopic
from ..protocol.pubsubwire import LIMIT
from ..protocol.subscriptions import check_pattern
from .brokertopics import remember
from .engine import MAX_HISTORY, MAX_HISTORY_SIZE
from .planehistory import HistoryTopics
from .rediswire import LOGGED, Channels, bad_reply, encode_command, encode_mark, encode_words

__all__ = [
    "KEYS",
    "HistoryCommands",
    "KnownHistory",
    "Limits",
    "LoggedChannels",
    "State",
    "key_names",
    "numbering",
    "read_begin",
    "read_news",
    "read_patterns",
    "read_state",
]

#: The keys of all scripts that number something, in this order.
KEYS: Final = ("state", "log", "offsets", "lost")
#: Channels of which it is remembered what their last number was.
_MAX_CHANNELS: Final = 1 << 16

#: Reads the state.
_READ: Final = """
local state = redis.call('GET', KEYS[1])
local last, epoch, forgotten, floor, size, count = 0, 0, 0, 0, 0, 0
if state then last, epoch, forgotten, floor, size, count = struct.unpack('>I8I8I8I8I8I4', state) end
"""
_CHANGES: Final = """
local function now()
  local time = redis.call('TIME')
  return math.max(last, time[1] * 1000000 + time[2])
end
local function save()
  redis.call('SET', KEYS[1], struct.pack('>I8I8I8I8I8I4', last, epoch, forgotten, floor, size, count))
end
local function begin(another)
  redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
  epoch, forgotten, floor, size, count = another, 0, last, 0, 0
end
"""
_STATE: Final = _READ + _CHANGES
#: What :data:`_PUBLISH` does if it has neither to begin a history nor to make room: without the functions, as to define
#: them takes time, too.
_PUBLISH_AT_ONCE: Final = """
if epoch > 0 and count < {max} + {more} and size + #ARGV[1] + #ARGV[3] + 44 <= {max_size} + {more_size} then
  last = last + 1
  local channel, number = ARGV[1], string.format('%.0f', last)
  local previous = tonumber(redis.call('ZSCORE', KEYS[3], channel) or forgotten)
  local message = ARGV[2] .. struct.pack('>I8I8I8', last, previous, epoch) .. ARGV[3]
  size = size + #channel + #message
  redis.call('SET', KEYS[1], struct.pack('>I8I8I8I8I8I4', last, epoch, forgotten, floor, size, count + 1))
  redis.call('XADD', KEYS[2], number .. '-0', 'c', channel, 'm', message)
  redis.call('ZADD', KEYS[3], number, channel)
  redis.call('PUBLISH', channel, message)
  return last
end
"""
#: Makes room in the log for a publication, by ``make_room(channel, message)``, to be called before :data:`_APPEND`.
_MAKE_ROOM: Final = """
local function trim()
  count = redis.call('XLEN', KEYS[2]) + 1
  local from = '-'
  while true do
    local oldest = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', {more} + 2)
    for _, entry in ipairs(oldest) do
      if count == 1 or (count <= {max} and size <= {max_size}) then return end
      count, size = count - 1, size - #entry[2][2] - #entry[2][4]
    end
    if #oldest == 0 then return end
    from = string.match(oldest[#oldest][1], '%d+') .. '-1'
  end
end
local function forget_channels(key)
  local many = redis.call('ZCARD', key) - {channels}
  if many <= 0 then return false end
  forgotten = math.max(forgotten, tonumber(redis.call('ZRANGE', key, many - 1, many - 1, 'WITHSCORES')[2]))
  redis.call('ZREMRANGEBYRANK', key, 0, many - 1)
  return true
end
local function append(channel, message, number)
  count, size = count + 1, size + #channel + #message
  local trimmed = count > {max} + {more} or size > {max_size} + {more_size}
  if trimmed then trim() end
  save()
  if trimmed then
    redis.call('XTRIM', KEYS[2], 'MAXLEN', count - 1)
    if forget_channels(KEYS[3]) then save() end
  end
  redis.call('XADD', KEYS[2], number .. '-0', 'c', channel, 'm', message)
end
"""
#: Arguments: the channel, the mark, and the content. Returns the offset. The state is the first thing that is written:
#: a server without memory refuses that, and nothing has happened.
_PUBLISH: Final = """
if epoch == 0 then
  last = now()
  begin(last)
end
last = last + 1
local channel, number = ARGV[1], string.format('%.0f', last)
local previous = tonumber(redis.call('ZSCORE', KEYS[3], channel) or forgotten)
local message = ARGV[2] .. struct.pack('>I8I8I8', last, previous, epoch) .. ARGV[3]
append(channel, message, number)
redis.call('ZADD', KEYS[3], number, channel)
redis.call('PUBLISH', channel, message)
return last
"""
#: One more key: ``patterns``. Arguments: an epoch for a new history, the epoch and the offset of a publication that
#: must still be there or have been taken away as too old, the channel for news, and patterns. Returns the epoch, the
#: last number, and all patterns.
_BEGIN: Final = """
local known = tonumber(ARGV[3])
local is_lost = epoch == 0
if epoch == tonumber(ARGV[2]) and known > 0 then
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  if not oldest or known > last then
    is_lost = true
  elseif known >= tonumber(string.match(oldest[1], '%d+')) then
    is_lost = #redis.call('XRANGE', KEYS[2], ARGV[3], ARGV[3]) == 0
  end
end
last = now()
if is_lost then begin(tonumber(ARGV[1])) end
local added = 0
for number = 5, #ARGV do added = added + 1 - redis.call('SISMEMBER', KEYS[5], ARGV[number]) end
if added > 0 then floor = last end
save()
if added > 0 then redis.call('SADD', KEYS[5], unpack(ARGV, 5)) end
local patterns = redis.call('SMEMBERS', KEYS[5])
if added > 0 then redis.call('PUBLISH', ARGV[4], cjson.encode(patterns)) end
return {epoch, last, patterns}
"""
#: Returns the last number, the epoch, the floor, and what is forgotten.
_LOOK: Final = """
return {last, epoch, floor, forgotten}
"""
#: Arguments: the most bytes to return, and channels, each with the offset from which to go back, "" for its last one.
#: Returns how many channels are done, where each of these has ended, from where to go on with the next one, and the
#: channels and messages.
_FOLLOW: Final = """
local ends, found, size, looks = {}, {}, 0, 0
for number = 2, #ARGV, 2 do
  local channel, at = ARGV[number], ARGV[number + 1]
  if at == '' then
    at = redis.call('ZSCORE', KEYS[3], channel) or forgotten
  end
  at = tonumber(at)
  while at > 0 do
    if size > tonumber(ARGV[1]) or looks > 512 then return {#ends, ends, at, found} end
    local id = string.format('%.0f-0', at)
    local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
    looks = looks + 1
    if not entry or entry[2][2] ~= channel then break end
    local message = entry[2][4]
    found[#found + 1] = channel
    found[#found + 1] = message
    size = size + #message
    at = struct.unpack('>I8', message, 29)
  end
  ends[#ends + 1] = at
end
return {#ends, ends, 0, found}
"""
_BEGINS: Final = """
local function begins(channel, from)
  for number = from, #ARGV do
    if string.sub(channel, 1, #ARGV[number]) == ARGV[number] then return true end
  end
  return false
end
"""
#: Arguments: the most bytes to return, the offset from which to look, and what the channels begin with. Returns the
#: offset from which to go on, 0 at the end, and the channels and messages.
_SCAN: Final = """
local found, size = {}, 0
local entries = redis.call('XRANGE', KEYS[2], ARGV[2], '+', 'COUNT', 256)
for _, entry in ipairs(entries) do
  local channel, message = entry[2][2], entry[2][4]
  if begins(channel, 3) then
    found[#found + 1] = channel
    found[#found + 1] = message
    size = size + #message
  end
  if size > tonumber(ARGV[1]) then
    return {tonumber(string.match(entry[1], '%d+')) + 1, found}
  end
end
if #entries < 256 then return {0, found} end
return {tonumber(string.match(entries[256][1], '%d+')) + 1, found}
"""
#: Arguments: which key, the number below which to look, "" for the first step, and what the channels begin with.
#: Returns the number from which to go on, 0 at the end, and channels and numbers, the highest first: of channels whose
#: last publication is not in the log, or whose value is gone.
_LOST: Final = """
local below = '+inf'
if ARGV[2] ~= '' then
  below = '(' .. ARGV[2]
elseif ARGV[1] == '3' then
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  if oldest then below = '(' .. string.match(oldest[1], '%d+') end
end
local some = redis.call('ZREVRANGEBYSCORE', KEYS[tonumber(ARGV[1])], below, '-inf', 'WITHSCORES', 'LIMIT', 0, 512)
local found = {}
for number = 1, #some, 2 do
  if begins(some[number], 3) then
    found[#found + 1] = some[number]
    found[#found + 1] = tonumber(some[number + 1])
  end
end
if #some < 1024 then return {0, found} end
return {tonumber(some[1024]), found}
"""
#: The most bytes of messages that one step returns, less the last one.
_STEP_BYTES: Final = 1 << 20


def key_names(prefix: str, names: Iterable[str]) -> list[bytes]:
    """Return the keys of a plane's prefix that have some names."""
    return [f"gmultisocket:{prefix}{name}".encode() for name in names]


class Limits(NamedTuple):
    """What the log may have.

    Attributes:
        entries: publications.
        size: bytes of their channels and messages.
        more: publications above the limit at times: to take away several at once costs less.
        more_size: bytes of them.
    """

    entries: int = MAX_HISTORY
    size: int = MAX_HISTORY_SIZE
    more: int = 64
    more_size: int = MAX_HISTORY_SIZE >> 6


_LIMITS: Final = Limits()


def numbering(limits: Limits) -> str:
    """Return the beginning of each script that keeps something."""
    return _fill(_STATE + _MAKE_ROOM, limits)


def _fill(text: str, limits: Limits) -> str:
    """Return a script with the limits put in."""
    for name, value in (("max", limits.entries), ("max_size", limits.size), ("more", limits.more),
                        ("more_size", limits.more_size), ("channels", _MAX_CHANNELS)):  # fmt: skip
        text = text.replace("{" + name + "}", str(value))
    return text


class LoggedChannels:
    """Which channels are of topics with history.

    Args:
        channels: translates topics.

    Attributes:
        patterns: of these topics; not to be changed.
    """

    __slots__ = ("_channels", "_known", "_topics", "patterns")

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._topics = HistoryTopics(())
        self._known: dict[bytes, bool] = {}
        self.patterns = self._topics.patterns

    def add(self, patterns: Iterable[str]) -> None:
        """Add patterns."""
        self._topics.add(patterns)
        self._known.clear()
        self.patterns = self._topics.patterns

    def __contains__(self, channel: bytes) -> bool:
        known = self._known.get(channel)
        if known is None:
            topic = self._channels.decode(channel)
            known = topic is not None and topic in self._topics
            remember(self._known, channel, known)
        return known


class State(NamedTuple):
    """The state of the history at the server.

    Attributes:
        last: the last number.
        epoch: names the history, 0 if there is none.
        floor: behind it all topics with history are kept.
        forgotten: at least the last number of each channel of which it is not known.
    """

    last: int
    epoch: int
    floor: int
    forgotten: int


class KnownHistory:
    """What a plane knows of the history over its connections.

    Attributes:
        epoch: names it, 0 if nothing is known.
        offset: of the newest publication of which it is known that the server had it.
    """

    __slots__ = ("epoch", "offset")

    def __init__(self) -> None:
        self.epoch = 0
        self.offset = 0

    def begin(self, epoch: int) -> None:
        """A connection has reached a history."""
        if epoch != self.epoch:
            self.epoch, self.offset = epoch, 0


class HistoryCommands:
    """Makes the commands.

    Args:
        prefix: in front of each topic.
        origin: of the plane.
        news: the channel under which the patterns are published when there are new ones.
    """

    __slots__ = ("_follow", "_keys", "_look", "_lost", "_origin", "_patterns_key", "_publish", "_scan", "load", "news")

    def __init__(self, prefix: str, origin: bytes, news: bytes) -> None:
        self._keys = key_names(prefix, KEYS)
        [self._patterns_key] = key_names(prefix, ["patterns"])
        self._origin = origin
        self.news = news
        script = _fill(_READ + _PUBLISH_AT_ONCE + _CHANGES + _MAKE_ROOM + _PUBLISH, _LIMITS).encode()
        digest = hashlib.sha1(script, usedforsecurity=False).hexdigest().encode()
        #: The words of each publication that come first.
        self._publish = encode_words(b"EVALSHA", digest, b"%d" % len(self._keys), *self._keys)
        #: The command that makes the server know the script of publications.
        self.load = encode_command(b"SCRIPT", b"LOAD", script)

    def publish(self, channel: bytes, content: bytes, number: int) -> bytes:
        """Return the command by which a publication of a topic with history is kept and published."""
        mark = encode_mark(LOGGED, self._origin, number)
        return b"*%d\r\n%b%b" % (len(self._keys) + 6, self._publish, encode_words(channel, mark, content))

    def _call(self, script: str, *arguments: bytes, more_keys: Sequence[bytes] = ()) -> bytes:
        keys = (*self._keys, *more_keys)
        return encode_command(b"EVAL", script.encode(), b"%d" % len(keys), *keys, *arguments)

    def patterns(self) -> bytes:
        """Return the command that reads the patterns of the topics with history."""
        return encode_command(b"SMEMBERS", self._patterns_key)

    def begin(self, patterns: Sequence[str], epoch: int, offset: int) -> bytes:
        """Return the command by which a plane takes part.

        Args:
            patterns: of its topics with history.
            epoch, offset: of the last publication of which it is known that the server had it, 0 for none.
        """
        new_epoch = random.SystemRandom().randrange(1, LIMIT)
        numbers = (b"%d" % number for number in (new_epoch, epoch, offset))
        encoded = (pattern.encode() for pattern in patterns)
        return self._call(_STATE + _BEGIN, *numbers, self.news, *encoded, more_keys=[self._patterns_key])

    def look(self) -> bytes:
        """Return the command that reads the state."""
        return self._call(_STATE + _LOOK)

    def follow(self, arguments: Iterable[bytes]) -> bytes:
        """Return the command for a step of a fetch: of some channels."""
        return self._call(_STATE + _FOLLOW, b"%d" % _STEP_BYTES, *arguments)

    def scan(self, start: int, beginnings: Iterable[bytes]) -> bytes:
        """Return the command for a step of a fetch: of all channels that begin with something."""
        return self._call(_BEGINS + _SCAN, b"%d" % _STEP_BYTES, b"%d" % start, *beginnings)

    def lost(self, key: str, below: bytes, beginnings: Iterable[bytes]) -> bytes:
        """Return the command for a step in search of channels of which a publication is lost."""
        return self._call(_BEGINS + _LOST, b"%d" % (KEYS.index(key) + 1), below, *beginnings)


def read_state(reply: Any) -> State:
    """Read the reply to ``look``.

    Raises:
        BadMessage: it is no such reply.
    """
    return State(*_numbers(reply, 4))


def read_begin(reply: Any) -> tuple[int, int, list[str]]:
    """Return the epoch, the last number and all patterns in the reply to ``begin``.

    Raises:
        BadMessage: it is no such reply.
    """
    if not isinstance(reply, list) or len(reply) != 3:
        raise bad_reply()
    epoch, last = _numbers(reply[:2], 2)
    return epoch, last, read_patterns(reply[2])


def read_patterns(reply: Any) -> list[str]:
    """Read the patterns of the topics with history. What is no pattern is left out.

    Raises:
        BadMessage: it is no such reply.
    """
    if not isinstance(reply, (list, set)) or not all(isinstance(each, bytes) for each in reply):
        raise bad_reply()
    found = []
    for each in reply:
        with suppress(BadTopic, UnicodeDecodeError):
            pattern = each.decode()
            check_pattern(pattern)
            found.append(pattern)
    return found


def read_news(content: bytes) -> list[str]:
    """Read the patterns in a message of the news; none if it is no such message."""
    try:
        patterns = json.loads(content)
        return read_patterns([each.encode() for each in patterns])
    except (ValueError, TypeError, AttributeError, BadMessage):
        return []


def _numbers(reply: Any, count: int) -> list[int]:
    if not isinstance(reply, list) or len(reply) != count or not all(type(each) is int for each in reply):
        raise bad_reply()
    return reply
