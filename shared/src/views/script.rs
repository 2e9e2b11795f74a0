//! The scripts. Each touches the keys of one hash tag only.

use redis::Script;

/// Takes a partition over: raises the owner's epoch and returns `[epoch, offset, topic_id, state]`. The first claim
/// ever marks the partition as `building`.
///
/// KEYS: meta.
pub fn claim() -> Script {
    Script::new(
        r"
        local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
        redis.call('HSETNX', KEYS[1], 'state', 'building')
        local have = redis.call('HMGET', KEYS[1], 'offset', 'topic_id', 'state')
        return {epoch, have[1] or '', have[2] or '', have[3] or ''}
        ",
    )
}

/// The fenced write: when owner and checkpoint are what the caller believes, runs the given Redis commands and moves
/// the checkpoint, all at once; else writes nothing. Returns 1 when written, 0 when another owner has taken over, -1
/// when the checkpoint is another one.
///
/// KEYS: meta. ARGV: epoch, topic id, expected offset (empty = none), new offset, then each command as its number of
/// words followed by the words. Their keys have the same hash tag, so they lie in the same slot.
pub fn apply() -> Script {
    Script::new(
        r"
        local have = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'topic_id')
        if have[1] ~= ARGV[1] then return 0 end
        if (have[2] or '') ~= ARGV[3] then return -1 end
        if have[3] and have[3] ~= ARGV[2] then return -1 end
        local at = 5
        while at <= #ARGV do
            local words = tonumber(ARGV[at])
            redis.call(unpack(ARGV, at + 1, at + words))
            at = at + words + 1
        end
        redis.call('HSET', KEYS[1], 'offset', ARGV[4], 'topic_id', ARGV[2])
        return 1
        ",
    )
}

/// Drops the oldest outcomes while they are expired or too many bytes. To be run after outcomes were added; returns
/// the bytes that are left.
///
/// KEYS: meta, order. ARGV: most bytes, most to drop in one call. Entries of `order` are `<bytes> <key>`.
pub fn trim_outcomes() -> Script {
    Script::new(
        r"
        local bytes = tonumber(redis.call('HGET', KEYS[1], 'bytes') or '0')
        for _ = 1, tonumber(ARGV[2]) do
            local oldest = redis.call('LINDEX', KEYS[2], 0)
            if not oldest then break end
            local size, key = string.match(oldest, '^(%d+) (.*)$')
            if bytes <= tonumber(ARGV[1]) and redis.call('EXISTS', key) == 1 then break end
            redis.call('LPOP', KEYS[2])
            redis.call('DEL', key)
            bytes = bytes - tonumber(size)
        end
        redis.call('HSET', KEYS[1], 'bytes', bytes)
        return bytes
        ",
    )
}

/// A page of a sorted set: the members behind `(score, id)` in the set's order, with their scores. Ties go by id, so
/// the place is found by bisection among those of equal score: a page costs O(log n + page), however deep.
///
/// KEYS: the set. ARGV: score and id of the last item seen (both empty = from the start), number of members.
pub fn page() -> Script {
    Script::new(
        r"
        local function before_or_at(a, b)
            for i = 1, math.min(#a, #b) do
                local x, y = string.byte(a, i), string.byte(b, i)
                if x ~= y then return x < y end
            end
            return #a <= #b
        end
        local from = 0
        if ARGV[1] ~= '' then
            from = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. ARGV[1])
            local to = from + redis.call('ZCOUNT', KEYS[1], ARGV[1], ARGV[1])
            while from < to do
                local middle = math.floor((from + to) / 2)
                local member = redis.call('ZRANGE', KEYS[1], middle, middle)[1]
                if before_or_at(member, ARGV[2]) then from = middle + 1 else to = middle end
            end
        end
        return redis.call('ZRANGE', KEYS[1], from, from + tonumber(ARGV[3]) - 1, 'WITHSCORES')
        ",
    )
}
