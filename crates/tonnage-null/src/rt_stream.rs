//! Streams, events, captures and graphs. Everything is done at once, so events are ready, unless
//! `TONNAGE_NULL_LAG=1` makes the device infinitely slow: then they are ready only after the host waited.

use crate::state::{current, fail, state};
use crate::types::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock};

#[derive(Debug, Default, Clone, Copy)]
struct Stream {
    device: usize,
    priority: i32,
}

#[derive(Debug, Default)]
struct Streams {
    streams: HashMap<usize, Stream>,
    /// Capture that a stream takes part in.
    capturing: HashMap<usize, u64>,
    /// Nodes of each capture and graph, by its number.
    nodes: HashMap<u64, u64>,
    next: usize,
}

static STREAMS: LazyLock<Mutex<Streams>> = LazyLock::new(Mutex::default);
static CAPTURES: AtomicUsize = AtomicUsize::new(0);
static NEXT_CAPTURE: AtomicU64 = AtomicU64::new(1);
static RECORDED: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
const HANDLES: usize = 0x7100_0000;
const GRAPHS: usize = 0x7200_0000;
/// `cudaErrorStreamCaptureUnsupported`
const CAPTURE_UNSUPPORTED: i32 = 900;

fn streams() -> MutexGuard<'static, Streams> {
    STREAMS
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn lagging() -> bool {
    static LAG: OnceLock<bool> = OnceLock::new();
    *LAG.get_or_init(|| std::env::var_os("TONNAGE_NULL_LAG").is_some_and(|v| v == "1"))
}

/// The capture that a stream takes part in; 0 for none.
fn capture_of(stream: usize) -> u64 {
    if CAPTURES.load(Relaxed) == 0 {
        0
    } else {
        streams().capturing.get(&stream).copied().unwrap_or(0)
    }
}

/// A kernel or copy was queued on a stream.
pub fn queued(stream: usize) {
    let capture = capture_of(stream);
    if capture != 0 {
        *streams().nodes.entry(capture).or_default() += 1;
    }
}

/// Work was queued by a library whose stream is not known here: a node of every capture under way.
pub fn queued_somewhere() {
    if CAPTURES.load(Relaxed) != 0 {
        let mut all = streams();
        let active: std::collections::HashSet<u64> = all.capturing.values().copied().collect();
        active
            .into_iter()
            .for_each(|c| *all.nodes.entry(c).or_default() += 1);
    }
}

fn new_stream(out: &Out<usize>, priority: i32) -> i32 {
    if let Err(e) = state().with(current(), |_| ()) {
        return e;
    }
    let mut all = streams();
    all.next += 1;
    let handle = HANDLES + all.next * 0x40;
    all.streams.insert(
        handle,
        Stream {
            device: current(),
            priority,
        },
    );
    out.set(handle);
    OK
}

fn synchronize(stream: usize) -> i32 {
    if capture_of(stream) != 0 {
        return fail(CAPTURE_UNSUPPORTED);
    }
    DONE.store(RECORDED.load(Relaxed), Relaxed);
    OK
}

/// What an event handle points to.
#[derive(Default)]
struct Event {
    number: AtomicU64,
    capture: AtomicU64,
}

fn new_event(out: &Out<usize>) -> i32 {
    state().announce();
    out.set(Box::into_raw(Box::<Event>::default()) as usize);
    OK
}

fn event(handle: usize) -> Option<&'static Event> {
    // SAFETY: event handles are boxes of `new_event` that the program has not destroyed, or null.
    unsafe { (handle as *const Event).as_ref() }
}

fn record(handle: usize, stream: usize) -> i32 {
    let Some(e) = event(handle) else {
        return fail(INVALID_HANDLE);
    };
    e.number.store(RECORDED.fetch_add(1, Relaxed) + 1, Relaxed);
    e.capture.store(capture_of(stream), Relaxed);
    OK
}

fn capture_info(stream: usize, status: &Out<i32>, id: &Out<u64>) -> u64 {
    let capture = capture_of(stream);
    status.set((capture != 0) as i32);
    id.set(capture);
    capture
}

fn instantiate(out: &Out<usize>) -> i32 {
    out.set(GRAPHS);
    OK
}

api! {
    fn cudaStreamCreate(s: Out<usize>) -> i32 { new_stream(&s, 0) }
    fn cudaStreamCreateWithFlags(s: Out<usize>, _flags: u32) -> i32 { new_stream(&s, 0) }
    fn cudaStreamCreateWithPriority(s: Out<usize>, _flags: u32, priority: i32) -> i32 { new_stream(&s, priority) }
    fn cudaStreamDestroy(s: usize) -> i32 {
        if streams().streams.remove(&s).is_some() { OK } else { fail(INVALID_HANDLE) }
    }
    fn cudaStreamQuery(s: usize) -> i32 { if capture_of(s) != 0 { fail(CAPTURE_UNSUPPORTED) } else { OK } }
    fn cudaStreamSynchronize(s: usize) -> i32 { synchronize(s) }
    fn cudaDeviceSynchronize() -> i32 {
        DONE.store(RECORDED.load(Relaxed), Relaxed);
        state().with(current(), |_| ()).map_or_else(|e| e, |()| OK)
    }
    fn cudaStreamWaitEvent(s: usize, e: usize, _flags: u32) -> i32 {
        let capture = event(e).map_or(0, |e| e.capture.load(Relaxed));
        if capture != 0 && CAPTURES.load(Relaxed) != 0 {
            // The fork of a capture onto another stream.
            let mut all = streams();
            if all.nodes.contains_key(&capture) {
                all.capturing.insert(s, capture);
            }
        }
        OK
    }
    fn cudaStreamGetPriority(s: usize, priority: Out<i32>) -> i32 {
        priority.set(streams().streams.get(&s).map_or(0, |s| s.priority));
        OK
    }
    fn cudaStreamGetFlags(_s: usize, flags: Out<u32>) -> i32 { flags.set(1); OK }
    fn cudaStreamGetId(s: usize, id: Out<u64>) -> i32 { id.set(s as u64); OK }
    fn cudaStreamGetDevice(s: usize, device: Out<i32>) -> i32 {
        device.set(streams().streams.get(&s).map_or(current(), |s| s.device) as i32);
        OK
    }
    fn cudaStreamAttachMemAsync(_s: usize, _p: usize, _n: usize, _flags: u32) -> i32 { OK }
    fn cudaStreamSetAttribute(_s: usize, _attribute: i32, _value: usize) -> i32 { OK }
    fn cudaStreamAddCallback(s: usize, callback: Option<extern "C" fn(usize, i32, usize)>, data: usize, _flags: u32) -> i32 {
        if let Some(callback) = callback { callback(s, OK, data) }
        OK
    }
    fn cudaLaunchHostFunc(_s: usize, callback: Option<extern "C" fn(usize)>, data: usize) -> i32 {
        if let Some(callback) = callback { callback(data) }
        OK
    }

    fn cudaEventCreate(e: Out<usize>) -> i32 { new_event(&e) }
    fn cudaEventCreateWithFlags(e: Out<usize>, _flags: u32) -> i32 { new_event(&e) }
    fn cudaEventDestroy(e: usize) -> i32 {
        if e == 0 { return fail(INVALID_HANDLE) }
        // SAFETY: a box of `new_event`; a program destroys an event once.
        drop(unsafe { Box::from_raw(e as *mut Event) });
        OK
    }
    fn cudaEventRecord(e: usize, s: usize) -> i32 { record(e, s) }
    fn cudaEventRecordWithFlags(e: usize, s: usize, _flags: u32) -> i32 { record(e, s) }
    fn cudaEventQuery(e: usize) -> i32 {
        match event(e) {
            Some(e) if lagging() && e.number.load(Relaxed) > DONE.load(Relaxed) => NOT_READY,
            Some(_) => OK,
            None => fail(INVALID_HANDLE),
        }
    }
    fn cudaEventSynchronize(e: usize) -> i32 {
        if let Some(e) = event(e) { DONE.fetch_max(e.number.load(Relaxed), Relaxed); }
        OK
    }
    fn cudaEventElapsedTime(ms: Out<f32>, _a: usize, _b: usize) -> i32 { ms.set(1.0); OK }
    fn cudaEventElapsedTime_v2(ms: Out<f32>, _a: usize, _b: usize) -> i32 { ms.set(1.0); OK }

    fn cudaThreadExchangeStreamCaptureMode(_mode: usize) -> i32 { OK }
    fn cudaStreamBeginCapture(s: usize, _mode: i32) -> i32 {
        let id = NEXT_CAPTURE.fetch_add(1, Relaxed);
        let mut all = streams();
        if s == 0 || all.capturing.contains_key(&s) { return fail(CAPTURE_UNSUPPORTED) }
        all.capturing.insert(s, id);
        all.nodes.insert(id, 0);
        CAPTURES.fetch_add(1, Relaxed);
        OK
    }
    fn cudaStreamEndCapture(s: usize, graph: Out<usize>) -> i32 {
        let mut all = streams();
        let Some(id) = all.capturing.get(&s).copied() else {
            graph.set(0);
            return fail(INVALID_VALUE);
        };
        all.capturing.retain(|_, c| *c != id);
        CAPTURES.fetch_sub(1, Relaxed);
        graph.set(GRAPHS + id as usize);
        OK
    }
    fn cudaStreamIsCapturing(s: usize, status: Out<i32>) -> i32 { status.set((capture_of(s) != 0) as i32); OK }
    fn cudaStreamGetCaptureInfo(s: usize, status: Out<i32>, id: Out<u64>, graph: Out<usize>, deps: Out<usize>, edges: Out<usize>, n: Out<usize>) -> i32 {
        let capture = capture_info(s, &status, &id);
        // Up to CUDA 12 this name has three parameters.
        if crate::rt_device::runtime_version() >= 13000 {
            graph.set(GRAPHS + capture as usize);
            deps.set(0);
            edges.set(0);
            n.set(0);
        }
        OK
    }
    fn cudaStreamGetCaptureInfo_v2(s: usize, status: Out<i32>, id: Out<u64>, graph: Out<usize>, deps: Out<usize>, n: Out<usize>) -> i32 {
        graph.set(GRAPHS + capture_info(s, &status, &id) as usize);
        deps.set(0);
        n.set(0);
        OK
    }
    fn cudaStreamGetCaptureInfo_v3(s: usize, status: Out<i32>, id: Out<u64>, graph: Out<usize>, deps: Out<usize>, edges: Out<usize>, n: Out<usize>) -> i32 {
        graph.set(GRAPHS + capture_info(s, &status, &id) as usize);
        deps.set(0);
        edges.set(0);
        n.set(0);
        OK
    }
    fn cudaStreamUpdateCaptureDependencies(_s: usize, _deps: usize, _n: usize, _flags: u32) -> i32 { OK }
    fn cudaGraphCreate(graph: Out<usize>, _flags: u32) -> i32 {
        graph.set(GRAPHS + NEXT_CAPTURE.fetch_add(1, Relaxed) as usize);
        OK
    }
    fn cudaGraphInstantiate(exec: Out<usize>, _graph: usize, _flags: u64) -> i32 { instantiate(&exec) }
    fn cudaGraphInstantiateWithFlags(exec: Out<usize>, _graph: usize, _flags: u64) -> i32 { instantiate(&exec) }
    fn cudaGraphExecUpdate(_exec: usize, _graph: usize, result: Out<i32>) -> i32 { result.set(0); OK }
    fn cudaGraphNodeGetType(_node: usize, kind: Out<i32>) -> i32 { kind.set(0); OK }
    fn cudaGraphUpload(_exec: usize, _s: usize) -> i32 { OK }
    fn cudaGraphLaunch(_exec: usize, _s: usize) -> i32 { state().launches.fetch_add(1, Relaxed); OK }
    fn cudaGraphDestroy(graph: usize) -> i32 { streams().nodes.remove(&(graph.wrapping_sub(GRAPHS) as u64)); OK }
    fn cudaGraphExecDestroy(_exec: usize) -> i32 { OK }
    fn cudaGraphDebugDotPrint(_graph: usize, _path: usize, _flags: u32) -> i32 { OK }
    fn cudaGraphGetNodes(graph: usize, nodes: Out<usize>, n: Out<usize>) -> i32 {
        let count = streams().nodes.get(&(graph.wrapping_sub(GRAPHS) as u64)).copied().unwrap_or(0) as usize;
        let room = if nodes.is_null() { 0 } else { n.get().unwrap_or(0).min(count) };
        (0..room).for_each(|i| nodes.set_at(i, GRAPHS + i));
        n.set(count);
        OK
    }
    fn cudaGraphNodeGetDependencies(_node: usize, _deps: usize, third: Out<usize>, fourth: Out<usize>) -> i32 {
        // CUDA 13: (node, deps, edges, n); before: (node, deps, n).
        if crate::rt_device::runtime_version() >= 13000 { fourth.set(0) } else { third.set(0) }
        OK
    }
}
