//! Kernels, captures, collectives and the generated functions, through the built library.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use common::{Library, PAGE, event, in_process, passes};
use std::ffi::{c_char, c_int};

#[test]
fn generated_functions_answer_in_the_right_place() {
    passes("case_generated");
}

#[test]
#[ignore = "a case of generated_functions_answer_in_the_right_place"]
fn case_generated() {
    let l = Library::open();
    let create: extern "C" fn(*mut usize) -> c_int = l.call("cublasCreate_v2");
    let (mut a, mut b) = (0, 0);
    assert_eq!((create(&mut a), create(&mut b)), (0, 0));
    assert!(a != 0 && a != b, "workspaces are kept by handle");
    let size: extern "C" fn(usize, c_int, c_int, usize, c_int, *mut [i32; 2]) -> c_int =
        l.call("cusolverDnSgetrf_bufferSize");
    let mut answer = [7, 7];
    assert_eq!(
        (size(a, 3, 3, 0, 3, &mut answer), answer),
        (0, [0, 7]),
        "four bytes, no more"
    );
    // handle, rank, n, embed, stride, dist, type, embed, stride, dist, type, batch, &size, type
    type Plan = extern "C" fn(
        c_int,
        c_int,
        usize,
        usize,
        i64,
        i64,
        c_int,
        usize,
        i64,
        i64,
        c_int,
        i64,
        *mut u64,
        c_int,
    ) -> c_int;
    let mut work = 7;
    let plan: Plan = l.call("cufftXtMakePlanMany");
    assert_eq!(
        (plan(1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 1, &mut work, 0), work),
        (0, 0)
    );
    assert_eq!(l.call::<extern "C" fn() -> c_int>("cublasSgemm_v2")(), 0);
}

#[test]
fn kernels_need_code_for_the_card() {
    let lines = passes("case_kernels");
    let e = event(&lines, "no-kernels");
    assert_eq!(
        (&e["capability"], &e["has"]),
        (&"8.6".into(), &serde_json::json!(["sm_90"]))
    );
    // no torch is loaded, so it is not a wheel that is named
    let message = e["message"].as_str().unwrap();
    assert!(message.contains("CMAKE_CUDA_ARCHITECTURES=86"), "{message}");
    assert_eq!(event(&lines, "exit")["launches"], 1);
}

/// A wrapper and a fat binary with one piece of code for 9.0.
fn fat_binary() -> usize {
    let mut code = vec![0u8; 80];
    code[0] = 2;
    code[4] = 64;
    code[8] = 16;
    code[28] = 90;
    let mut all = 0xba55_ed50u32.to_le_bytes().to_vec();
    all.extend([1, 0, 16, 0]);
    all.extend((code.len() as u64).to_le_bytes());
    all.extend(code);
    let all: &'static [u8] = all.leak();
    let wrapper = [0x4662_43b1 | 1 << 32, all.as_ptr() as usize, 0];
    Box::leak(Box::new(wrapper)).as_ptr() as usize
}

#[test]
#[ignore = "a case of kernels_need_code_for_the_card"]
fn case_kernels() {
    let l = Library::open();
    let handle = l.call::<extern "C" fn(usize) -> usize>("__cudaRegisterFatBinary")(fat_binary());
    let function = case_kernels as *const () as usize;
    let register: extern "C" fn(usize, usize, *const c_char, *const c_char) =
        l.call("__cudaRegisterFunction");
    register(handle, function, c"kernel".as_ptr(), c"kernel".as_ptr());
    // A grid and a block take two words each.
    type Launch = extern "C" fn(usize, u64, u64, u64, u64, usize, usize, usize) -> c_int;
    let launch: Launch = l.call("cudaLaunchKernel");
    l.malloc(PAGE);
    assert_eq!(launch(function, 1, 1, 1, 1, 0, 0, 0), 209);
    assert_eq!(l.last_error(), 209);
    assert_eq!(
        l.call::<extern "C" fn(c_int) -> c_int>("cudaSetDevice")(1),
        0
    );
    assert_eq!(
        launch(function, 1, 1, 1, 1, 0, 0, 0),
        0,
        "the other card has 9.0"
    );
}

#[test]
fn captures_know_their_streams() {
    passes("case_capture");
}

#[test]
#[ignore = "a case of captures_know_their_streams"]
fn case_capture() {
    let l = Library::open();
    let create: extern "C" fn(*mut usize) -> c_int = l.call("cudaStreamCreate");
    let capturing: extern "C" fn(usize, *mut c_int) -> c_int = l.call("cudaStreamIsCapturing");
    let (mut a, mut b, mut e, mut graph, mut nodes) = (0, 0, 0, 0, 9);
    assert_eq!((create(&mut a), create(&mut b)), (0, 0));
    l.call::<extern "C" fn(*mut usize) -> c_int>("cudaEventCreate")(&mut e);
    let is = |s| {
        let mut status = 7;
        capturing(s, &mut status);
        status
    };
    assert_eq!(
        l.call::<extern "C" fn(usize, c_int) -> c_int>("cudaStreamBeginCapture")(a, 0),
        0
    );
    assert_eq!((is(a), is(b), is(0)), (1, 0, 0));
    l.call::<extern "C" fn(usize, usize) -> c_int>("cudaEventRecord")(e, a);
    l.call::<extern "C" fn(usize, usize, u32) -> c_int>("cudaStreamWaitEvent")(b, e, 0);
    assert_eq!(is(b), 1, "forked onto the other stream");
    assert_eq!(
        l.call::<extern "C" fn(usize) -> c_int>("cudaStreamSynchronize")(b),
        900
    );
    l.call::<extern "C" fn() -> c_int>("cublasSgemm_v2")();
    assert_eq!(
        l.call::<extern "C" fn(usize, *mut usize) -> c_int>("cudaStreamEndCapture")(a, &mut graph),
        0
    );
    assert_eq!((is(a), is(b)), (0, 0));
    l.call::<extern "C" fn(usize, usize, *mut usize) -> c_int>("cudaGraphGetNodes")(
        graph, 0, &mut nodes,
    );
    assert_eq!(nodes, 1);
}

#[test]
fn a_rank_alone_hears_itself() {
    let (out, lines) = in_process(
        "case_rank",
        &[("TONNAGE_NULL_WORLD", "4"), ("TONNAGE_NULL_RANK", "2")],
    );
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    let e = event(&lines, "collectives");
    assert_eq!(
        (&e["calls"]["all_gather"], &e["bytes"]["all_gather"]),
        (&1.into(), &32.into())
    );
}

#[test]
#[ignore = "a case of a_rank_alone_hears_itself"]
fn case_rank() {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Id([u8; 128]);
    let l = Library::open();
    let init: extern "C" fn(*mut usize, c_int, Id, c_int) -> c_int = l.call("ncclCommInitRank");
    let gather: extern "C" fn(usize, usize, usize, c_int, usize, usize) -> c_int =
        l.call("ncclAllGather");
    let reduce: extern "C" fn(usize, usize, usize, c_int, c_int, usize, usize) -> c_int =
        l.call("ncclAllReduce");
    let copy: extern "C" fn(usize, usize, usize, c_int) -> c_int = l.call("cudaMemcpy");
    let mut comm = 0;
    assert_eq!(init(&mut comm, 4, Id([7; 128]), 4), 4, "no such rank");
    assert_eq!(init(&mut comm, 4, Id([7; 128]), 2), 0);
    let (_, p) = l.malloc(PAGE);
    let (value, mut all) = (5i64, [1i64; 4]);
    copy(p, &raw const value as usize, 8, 1);
    assert_eq!(gather(p, p + 64, 1, 4, comm, 0), 0);
    copy(all.as_mut_ptr() as usize, p + 64, 32, 2);
    assert_eq!(all, [5; 4]);
    reduce(p, p, 1, 4, 0, comm, 0);
    copy(all.as_mut_ptr() as usize, p, 8, 2);
    assert_eq!(all[0], 20, "the sum over four ranks");
    copy(all.as_mut_ptr() as usize, p + 4096, 8, 2);
    assert_eq!(all[0], 0, "what no collective wrote reads as zeros");
    assert_eq!(
        l.call::<extern "C" fn(usize) -> c_int>("ncclCommDestroy")(comm),
        0
    );
}
