//! NCCL without a network: communicators, and collectives that move nothing but small known values (`shadow`).

use crate::missing::done;
use crate::rt_memory::{allocate, release};
use crate::shadow::{self, LARGEST, Value};
use crate::state::state;
use crate::types::*;
use crate::world::{ASIDE, Mailbox};
use serde_json::{Value as Json, json};
use std::ffi::c_char;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const INVALID_ARGUMENT: i32 = 4;
const KINDS: [&str; 8] = [
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "broadcast",
    "reduce",
    "send",
    "recv",
    "all_to_all",
];
static CALLS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
static BYTES: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    AllReduce,
    AllGather,
    ReduceScatter,
    Broadcast,
    Reduce,
    Send,
    Recv,
    AllToAll,
}

/// Calls and bytes by kind; None before the first.
pub fn counts() -> Option<Json> {
    let used: Vec<usize> = (0..KINDS.len())
        .filter(|&k| CALLS[k].load(Relaxed) > 0)
        .collect();
    let of = |from: &[AtomicU64; 8]| -> Json {
        used.iter()
            .map(|&k| (KINDS[k], from[k].load(Relaxed)))
            .collect()
    };
    (!used.is_empty()).then(|| json!({"calls": of(&CALLS), "bytes": of(&BYTES)}))
}

/// 128 bytes that name a communicator, by value.
#[repr(C)]
#[derive(Clone, Copy, Hash)]
pub struct UniqueId([u8; 128]);

/// What a communicator's handle points to.
#[derive(Debug)]
struct Comm {
    size: usize,
    rank: usize,
    name: u64,
    issued: AtomicU64,
    splits: AtomicU64,
    messages: Vec<(AtomicU64, AtomicU64)>,
    mailbox: Option<Mailbox>,
    device: usize,
}

fn new_comm(out: &Out<usize>, size: i32, rank: i32, name: u64) -> i32 {
    if size < 1 || !(0..size).contains(&rank) {
        return INVALID_ARGUMENT;
    }
    let (size, rank) = (size as usize, rank as usize);
    let s = state();
    s.announce();
    let dir = s
        .settings
        .world_dir
        .as_ref()
        .filter(|_| s.settings.world.is_none() && size > 1);
    let comm = Comm {
        size,
        rank,
        name,
        issued: AtomicU64::new(0),
        splits: AtomicU64::new(0),
        messages: (0..size).map(|_| Default::default()).collect(),
        mailbox: dir.map(|d| Mailbox::new(d, format!("{name:016x}"), rank)),
        device: crate::state::current(),
    };
    out.set(Arc::into_raw(Arc::new(comm)) as usize);
    OK
}

/// The communicator behind a handle.
fn comm(handle: usize) -> Option<Arc<Comm>> {
    let p = handle as *const Comm;
    if p.is_null() {
        return None;
    }
    // SAFETY: handles come from `new_comm` and are given up once; the count is raised for the clone that is returned.
    unsafe {
        Arc::increment_strong_count(p);
        Some(Arc::from_raw(p))
    }
}

fn drop_comm(handle: usize) -> i32 {
    if handle != 0 {
        // SAFETY: as in `comm`; a program destroys or aborts a communicator once.
        drop(unsafe { Arc::from_raw(handle as *const Comm) });
    }
    OK
}

fn hash(of: impl Hash) -> u64 {
    let mut h = DefaultHasher::new();
    of.hash(&mut h);
    h.finish()
}

/// Bytes of an element (ncclDataType_t).
fn width(kind: i32) -> usize {
    match kind {
        0 | 1 | 10 | 11 => 1,
        6 | 9 => 2,
        4 | 5 | 8 => 8,
        _ => 4,
    }
}

/// Reduces the ranks' bytes, for the types that programs count and vote with; others stay the first rank's.
fn reduce(parts: &[Vec<u8>], kind: i32, op: i32) -> Vec<u8> {
    fn fold<const N: usize, T: Copy>(
        parts: &[Vec<u8>],
        get: fn([u8; N]) -> T,
        put: fn(T) -> [u8; N],
        f: impl Fn(T, T) -> T,
    ) -> Vec<u8> {
        let at = |p: &[u8], i: usize| p.get(i..i + N).and_then(|b| b.try_into().ok()).map(get);
        let mut out = parts[0].clone();
        for i in (0..out.len() / N * N).step_by(N) {
            let values: Vec<T> = parts.iter().filter_map(|p| at(p, i)).collect();
            if let Some(v) = values.into_iter().reduce(&f) {
                out[i..i + N].copy_from_slice(&put(v));
            }
        }
        out
    }
    macro_rules! by_type {
        ($t:ty, $add:expr, $mul:expr) => {
            match op {
                0 => fold(parts, <$t>::from_le_bytes, <$t>::to_le_bytes, $add),
                1 => fold(parts, <$t>::from_le_bytes, <$t>::to_le_bytes, $mul),
                2 => fold(parts, <$t>::from_le_bytes, <$t>::to_le_bytes, |a, b| {
                    if b > a { b } else { a }
                }),
                3 => fold(parts, <$t>::from_le_bytes, <$t>::to_le_bytes, |a, b| {
                    if b < a { b } else { a }
                }),
                _ => parts[0].clone(),
            }
        };
    }
    match kind {
        0 => by_type!(i8, i8::wrapping_add, i8::wrapping_mul),
        1 => by_type!(u8, u8::wrapping_add, u8::wrapping_mul),
        2 => by_type!(i32, i32::wrapping_add, i32::wrapping_mul),
        3 => by_type!(u32, u32::wrapping_add, u32::wrapping_mul),
        4 => by_type!(i64, i64::wrapping_add, i64::wrapping_mul),
        5 => by_type!(u64, u64::wrapping_add, u64::wrapping_mul),
        7 => by_type!(f32, |a, b| a + b, |a, b| a * b),
        8 => by_type!(f64, |a, b| a + b, |a, b| a * b),
        _ => parts[0].clone(),
    }
}

/// One collective's shape.
#[derive(Debug, Clone, Copy)]
struct Call {
    kind: Kind,
    element: i32,
    op: i32,
    root: usize,
    size: usize,
    rank: usize,
    /// Bytes of the count that the caller gives.
    bytes: usize,
}

impl Call {
    fn sends(&self) -> usize {
        match self.kind {
            Kind::ReduceScatter | Kind::AllToAll => self.bytes * self.size,
            _ => self.bytes,
        }
    }

    fn receives(&self) -> usize {
        match self.kind {
            Kind::AllGather | Kind::AllToAll => self.bytes * self.size,
            Kind::Reduce if self.rank != self.root => 0,
            _ => self.bytes,
        }
    }

    /// The output of this rank. `part` gives what a rank sent.
    fn output(&self, part: impl Fn(usize) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        let n = self.bytes;
        let slice = |p: Vec<u8>| {
            p.get(self.rank * n..(self.rank + 1) * n)
                .map(<[u8]>::to_vec)
        };
        match self.kind {
            Kind::Broadcast => part(self.root),
            Kind::AllGather => Some(
                (0..self.size)
                    .map(part)
                    .collect::<Option<Vec<_>>>()?
                    .concat(),
            ),
            Kind::AllToAll => Some(
                (0..self.size)
                    .map(|r| slice(part(r)?))
                    .collect::<Option<Vec<_>>>()?
                    .concat(),
            ),
            Kind::AllReduce | Kind::Reduce => Some(reduce(
                &(0..self.size).map(part).collect::<Option<Vec<_>>>()?,
                self.element,
                self.op,
            )),
            Kind::ReduceScatter => slice(reduce(
                &(0..self.size).map(part).collect::<Option<Vec<_>>>()?,
                self.element,
                self.op,
            )),
            Kind::Send | Kind::Recv => None,
        }
    }
}

fn count(kind: Kind, bytes: usize) {
    CALLS[kind as usize].fetch_add(1, Relaxed);
    BYTES[kind as usize].fetch_add(bytes as u64, Relaxed);
}

#[allow(clippy::too_many_arguments)]
fn collective(
    kind: Kind,
    send: usize,
    recv: usize,
    n: usize,
    element: i32,
    op: i32,
    root: i32,
    handle: usize,
) -> i32 {
    let Some(c) = comm(handle) else {
        return INVALID_ARGUMENT;
    };
    let bytes = n * width(element);
    let call = Call {
        kind,
        element,
        op,
        root: root.max(0) as usize,
        size: c.size,
        rank: c.rank,
        bytes,
    };
    count(kind, call.sends().max(call.receives()));
    let number = c.issued.fetch_add(1, Relaxed) + 1;
    let counts = kind != Kind::Broadcast || c.rank == call.root;
    let own = if counts {
        shadow::sent(send, call.sends())
    } else {
        None
    };
    let out = call.receives();
    let value = if c.mailbox.is_none() {
        // Every rank is taken to have sent what this one did.
        let own = own.or_else(|| shadow::sent(send, call.sends()));
        own.filter(|_| out <= LARGEST)
            .and_then(|o| call.output(|_| Some(o.clone())))
            .map(|o| Value::Known(o.into()))
    } else {
        if let Some(m) = &c.mailbox {
            m.post(number, own.as_deref(), Some(number));
        }
        let read = move || {
            let m = c.mailbox.as_ref()?;
            call.output(|r| {
                if r == call.rank {
                    own.clone()
                } else {
                    m.read(r, number, Some(number))
                }
            })
        };
        (out <= LARGEST).then(|| Value::Later(Arc::new(read)))
    };
    if out > 0 {
        shadow::received(recv, out, value);
    }
    done()
}

fn message(kind: Kind, at: usize, n: usize, element: i32, peer: i32, handle: usize) -> i32 {
    let Some(c) = comm(handle) else {
        return INVALID_ARGUMENT;
    };
    let bytes = n * width(element);
    count(kind, bytes);
    let peer = peer.max(0) as usize;
    let Some((sent, received)) = c.messages.get(peer) else {
        return INVALID_ARGUMENT;
    };
    let tag = |from: usize, to: usize, n: u64| ASIDE | (from as u64) << 48 | (to as u64) << 36 | n;
    if kind == Kind::Send {
        if let Some(m) = &c.mailbox {
            let tag = tag(c.rank, peer, sent.fetch_add(1, Relaxed));
            m.post(
                tag,
                Some(&shadow::sent(at, bytes).unwrap_or_default()),
                None,
            );
        }
        return done();
    }
    let tag = tag(peer, c.rank, received.fetch_add(1, Relaxed));
    let value = (c.mailbox.is_some() && bytes <= LARGEST).then(|| {
        Value::Later(Arc::new(move || {
            c.mailbox
                .as_ref()?
                .read(peer, tag, None)
                .filter(|b| b.len() == bytes)
        }))
    });
    shadow::received(at, bytes, value);
    done()
}

/// The part of a split communicator that this rank is in.
fn split(parent: usize, color: i32, key: i32, out: &Out<usize>) -> i32 {
    let Some(c) = comm(parent) else {
        return INVALID_ARGUMENT;
    };
    let turn = c.splits.fetch_add(1, Relaxed);
    let Some(m) = &c.mailbox else {
        // Nobody knows what the absent ranks chose: the part is taken to be as large as the whole.
        if color < 0 {
            out.set(0);
            return OK;
        }
        return new_comm(
            out,
            c.size as i32,
            c.rank as i32,
            hash((c.name, turn, color)),
        );
    };
    let tag = ASIDE | 1 << 61 | turn;
    m.post(
        tag,
        Some(&[color.to_le_bytes(), key.to_le_bytes()].concat()),
        None,
    );
    if color < 0 {
        out.set(0);
        return OK;
    }
    let mut members = Vec::new();
    for rank in 0..c.size {
        let theirs = if rank == c.rank {
            Some((color, key))
        } else {
            m.read(rank, tag, None).and_then(|b| pair(&b))
        };
        if let Some((theirs, key)) = theirs
            && theirs == color
        {
            members.push((key, rank));
        }
    }
    members.sort_unstable();
    let rank = members.iter().position(|&(_, r)| r == c.rank).unwrap_or(0);
    new_comm(
        out,
        members.len() as i32,
        rank as i32,
        hash((c.name, turn, color)),
    )
}

fn pair(b: &[u8]) -> Option<(i32, i32)> {
    Some((
        i32::from_le_bytes(b.get(..4)?.try_into().ok()?),
        i32::from_le_bytes(b.get(4..8)?.try_into().ok()?),
    ))
}

const TEXT: &std::ffi::CStr = c"tonnage's null NCCL";

api! {
    fn ncclGetUniqueId(id: Out<UniqueId>) -> i32 {
        let mut bytes = [0; 128];
        // SAFETY: fills the array, whose length is given.
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        id.set(UniqueId(bytes));
        OK
    }
    fn ncclCommInitRank(c: Out<usize>, n: i32, id: UniqueId, rank: i32) -> i32 { new_comm(&c, n, rank, hash(id)) }
    fn ncclCommInitRankConfig(c: Out<usize>, n: i32, id: UniqueId, rank: i32, _config: usize) -> i32 { new_comm(&c, n, rank, hash(id)) }
    fn ncclCommInitRankScalable(c: Out<usize>, n: i32, rank: i32, _ids: i32, id: Out<UniqueId>, _config: usize) -> i32 {
        new_comm(&c, n, rank, id.get().map_or(0, hash))
    }
    fn ncclCommInitAll(c: Out<usize>, n: i32, _devices: usize) -> i32 {
        for i in 0..n { new_comm(&Out::at(c.address() + i as usize * 8), n, i, hash(n)); }
        OK
    }
    fn ncclCommSplit(c: usize, color: i32, key: i32, out: Out<usize>, _config: usize) -> i32 { split(c, color, key, &out) }
    fn ncclCommShrink(c: usize, _excluded: usize, n: i32, out: Out<usize>, _config: usize, _flags: i32) -> i32 {
        let Some(c) = comm(c) else { return INVALID_ARGUMENT };
        let size = c.size as i32 - n;
        new_comm(&out, size, (c.rank as i32).min(size - 1), hash((c.name, "shrunk", n)))
    }
    fn ncclCommFinalize(_c: usize) -> i32 { OK }
    fn ncclCommDestroy(c: usize) -> i32 { drop_comm(c) }
    fn ncclCommAbort(c: usize) -> i32 { drop_comm(c) }
    fn ncclCommGetAsyncError(_c: usize, e: Out<i32>) -> i32 { e.set(OK); OK }
    fn ncclCommCount(c: usize, n: Out<i32>) -> i32 { comm(c).map_or(INVALID_ARGUMENT, |c| { n.set(c.size as i32); OK }) }
    fn ncclCommUserRank(c: usize, n: Out<i32>) -> i32 { comm(c).map_or(INVALID_ARGUMENT, |c| { n.set(c.rank as i32); OK }) }
    fn ncclCommCuDevice(c: usize, n: Out<i32>) -> i32 { comm(c).map_or(INVALID_ARGUMENT, |c| { n.set(c.device as i32); OK }) }
    fn ncclCommRegister(_c: usize, buffer: usize, _n: usize, h: Out<usize>) -> i32 { h.set(buffer); OK }
    fn ncclCommDeregister(_c: usize, _h: usize) -> i32 { OK }
    fn ncclCommWindowRegister(_c: usize, _buffer: usize, _n: usize, w: Out<usize>, _flags: i32) -> i32 { w.set(0); OK }
    fn ncclCommWindowDeregister(_c: usize, _w: usize) -> i32 { OK }
    fn ncclGetErrorString(_e: i32) -> *const c_char { TEXT.as_ptr() }
    fn ncclGetLastError(_c: usize) -> *const c_char { TEXT.as_ptr() }
    fn ncclGroupStart() -> i32 { OK }
    fn ncclGroupEnd() -> i32 { OK }
    fn ncclGroupSimulateEnd(_info: usize) -> i32 { OK }
    fn ncclMemAlloc(p: Out<usize>, n: usize) -> i32 { if allocate(&p, n) == OK { OK } else { 1 } }
    fn ncclMemFree(p: usize) -> i32 { if release(p) == OK { OK } else { 1 } }
    fn ncclRedOpCreatePreMulSum(op: Out<i32>) -> i32 { op.set(5); OK }
    fn ncclRedOpDestroy(_op: i32) -> i32 { OK }
    fn ncclAllReduce(s: usize, r: usize, n: usize, t: i32, op: i32, c: usize, _stream: usize) -> i32 { collective(Kind::AllReduce, s, r, n, t, op, 0, c) }
    fn ncclReduce(s: usize, r: usize, n: usize, t: i32, op: i32, root: i32, c: usize, _stream: usize) -> i32 { collective(Kind::Reduce, s, r, n, t, op, root, c) }
    fn ncclBroadcast(s: usize, r: usize, n: usize, t: i32, root: i32, c: usize, _stream: usize) -> i32 { collective(Kind::Broadcast, s, r, n, t, 0, root, c) }
    fn ncclBcast(b: usize, n: usize, t: i32, root: i32, c: usize, _stream: usize) -> i32 { collective(Kind::Broadcast, b, b, n, t, 0, root, c) }
    fn ncclAllGather(s: usize, r: usize, n: usize, t: i32, c: usize, _stream: usize) -> i32 { collective(Kind::AllGather, s, r, n, t, 0, 0, c) }
    fn ncclReduceScatter(s: usize, r: usize, n: usize, t: i32, op: i32, c: usize, _stream: usize) -> i32 { collective(Kind::ReduceScatter, s, r, n, t, op, 0, c) }
    fn ncclAlltoAll(s: usize, r: usize, n: usize, t: i32, c: usize, _stream: usize) -> i32 { collective(Kind::AllToAll, s, r, n, t, 0, 0, c) }
    fn ncclSend(s: usize, n: usize, t: i32, peer: i32, c: usize, _stream: usize) -> i32 { message(Kind::Send, s, n, t, peer, c) }
    fn ncclRecv(r: usize, n: usize, t: i32, peer: i32, c: usize, _stream: usize) -> i32 { message(Kind::Recv, r, n, t, peer, c) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions() {
        let parts = [3i64, -1].map(|v| v.to_le_bytes().to_vec());
        assert_eq!(reduce(&parts, 4, 0), 2i64.to_le_bytes());
        assert_eq!(reduce(&parts, 4, 2), 3i64.to_le_bytes());
        assert_eq!(
            reduce(&parts, 6, 0),
            parts[0],
            "half precision stays the first rank's"
        );
    }

    #[test]
    fn outputs() {
        let call = |kind| Call {
            kind,
            element: 1,
            op: 0,
            root: 1,
            size: 2,
            rank: 1,
            bytes: 2,
        };
        let part = |r: usize| Some(vec![r as u8; 4]);
        assert_eq!(call(Kind::AllToAll).output(part), Some(vec![0, 0, 1, 1]));
        assert_eq!(call(Kind::ReduceScatter).output(part), Some(vec![1, 1]));
        assert_eq!(
            call(Kind::Broadcast).output(|r| Some(vec![r as u8; 2])),
            Some(vec![1, 1])
        );
        assert_eq!(
            call(Kind::AllGather).output(|r| (r == 0).then(Vec::new)),
            None,
            "one rank did not know"
        );
    }
}
