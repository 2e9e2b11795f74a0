//! The scripts. Each touches the keys of one hash tag only.

use redis::Script;

/// Takes a partition over, when it may be had: gives it a new owner's epoch, and returns
/// `[1, epoch, offset, topic_id, state, fold]`. Who still owns it by the epoch given gets that epoch again. The first claim
/// ever marks the partition as `building`. Returns `[0]` when another projector has taken it over meanwhile, and `[-1]`
/// while it is lent to a tool; `[-2]` when the caller had it and nothing is there any more: Redis was emptied, or the
/// version was freed, and then it must not come back.
///
/// An epoch is Redis' time in microseconds, or one more than the last where that is not more. So it is never one that
/// somebody may still hold, also in a Redis that came back from an older dump or a replica that had not all: there a
/// count would go on from an old number, and be somebody else's soon.
///
/// A tool claims a *loan* (time to lend > 0): the owner finds another epoch, sees by `lent_until` that it need not
/// give up, and claims again once the loan is over (`lent_from` is its own epoch). Nobody claims before that.
///
/// KEYS: meta. ARGV: epoch of the caller's last claim (empty = whoever has it now is to give way), milliseconds to lend
/// it for (0 = to own it).
pub fn claim() -> Script {
    Script::new(
        r"
        local names = {'epoch', 'offset', 'topic_id', 'state', 'lent_until', 'lent_from', 'fold'}
        local have = redis.call('HMGET', KEYS[1], unpack(names))
        local stored, lend = tonumber(have[1] or '0'), tonumber(ARGV[2])
        if ARGV[1] ~= '' and ARGV[1] == have[1] then
            return {1, ARGV[1], have[2] or '', have[3] or '', have[4] or '', have[7] or ''}
        end
        local time = redis.call('TIME')
        local now = time[1] * 1000000 + time[2]
        if have[5] and tonumber(have[5]) > now then return {-1} end
        if ARGV[1] ~= '' and not have[1] then return {-2} end
        if ARGV[1] ~= '' and stored > tonumber(ARGV[1]) and have[6] ~= ARGV[1] then return {0} end
        -- Below 2^53, so Lua's numbers hold it exactly; but they would be written with an exponent.
        local epoch = string.format('%.0f', math.max(stored + 1, now))
        redis.call('HSET', KEYS[1], 'epoch', epoch, 'state', have[4] or 'building')
        if lend > 0 then
            local until_ = string.format('%.0f', now + lend * 1000)
            redis.call('HSET', KEYS[1], 'lent_until', until_, 'lent_from', have[6] or have[1] or '0')
        else
            redis.call('HDEL', KEYS[1], 'lent_until', 'lent_from')
        end
        return {1, epoch, have[2] or '', have[3] or '', have[4] or 'building', have[7] or ''}
        ",
    )
}

/// Extends a loan, or ends it: the caller's epoch stays, and whoever claims gets the partition. Returns 1, or 0 when the
/// loan was over and somebody has claimed.
///
/// KEYS: meta. ARGV: epoch of the loan, milliseconds from now (0 = give back).
pub fn extend() -> Script {
    Script::new(
        r"
        if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
        local time = redis.call('TIME')
        local until_ = time[1] * 1000000 + time[2] + ARGV[2] * 1000
        redis.call('HSET', KEYS[1], 'lent_until', string.format('%.0f', until_))
        return 1
        ",
    )
}

/// The fenced write: when owner and checkpoint are what the caller believes, runs the given Redis commands and moves
/// the checkpoint, all at once; else writes nothing. Returns 1 when written, 0 when another owner has taken over, -1
/// when the checkpoint is another one.
///
/// KEYS: meta. ARGV: epoch, topic id, expected offset (empty = none), new offset, then each command as its number of
/// words followed by the words. Their keys have the same hash tag, so they lie in the same slot; for a cluster they are
/// in KEYS as well.
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
            -- A cluster that moves the slot may refuse the next key: what is dropped is counted at once.
            redis.call('LPOP', KEYS[2])
            redis.call('DEL', key)
            bytes = redis.call('HINCRBY', KEYS[1], 'bytes', -tonumber(size))
        end
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
