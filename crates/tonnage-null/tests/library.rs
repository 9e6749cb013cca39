//! Memory, devices, refusals and the report, through the built library.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use common::{Library, PAGE, event, in_process, passes};
use std::ffi::{c_char, c_int, c_void};
use std::process::Command;

#[test]
fn memory_has_a_capacity() {
    let lines = passes("case_capacity");
    assert_eq!(event(&lines, "device")["free_bytes"], 90 * PAGE);
    assert_eq!(event(&lines, "refused")["requested_bytes"], 86 * PAGE);
    assert_eq!(event(&lines, "refused")["free_bytes"], 85 * PAGE);
    let exit = &event(&lines, "exit")["devices"][0];
    assert_eq!(exit["peak_bytes"], 100 * PAGE);
    assert_eq!(exit["peak_allocated_bytes"], 90 * PAGE);
}

#[test]
#[ignore = "a case of memory_has_a_capacity"]
fn case_capacity() {
    let l = Library::open();
    assert_eq!(l.info(), (90 * PAGE, 100 * PAGE));
    let (e, a) = l.malloc(5 * PAGE - 7);
    assert_eq!((e, l.info().0), (0, 85 * PAGE));
    assert_eq!(l.malloc(86 * PAGE), (2, 0));
    assert_eq!(
        (l.last_error(), l.last_error()),
        (2, 0),
        "the error is remembered once"
    );
    let (e, b) = l.malloc(85 * PAGE);
    assert_eq!((e, l.info().0), (0, 0));
    assert_eq!((l.free(a), l.free(b), l.info().0), (0, 0, 90 * PAGE));
    assert_eq!(l.free(a), 1, "freed twice");
    assert_eq!(l.free(a + 512), 1, "not an allocation");
    assert_eq!(l.free(0), 0);
}

#[test]
fn devices_are_apart() {
    passes("case_devices");
    let (out, _) = in_process("case_one_visible", &[("CUDA_VISIBLE_DEVICES", "1")]);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    let (out, _) = in_process("case_none_visible", &[("CUDA_VISIBLE_DEVICES", "")]);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
}

#[test]
#[ignore = "a case of devices_are_apart"]
fn case_devices() {
    let l = Library::open();
    let set: extern "C" fn(c_int) -> c_int = l.call("cudaSetDevice");
    let (_, a) = l.malloc(20 * PAGE);
    assert_eq!(set(1), 0);
    assert_eq!(l.info(), (50 * PAGE, 50 * PAGE));
    assert_eq!(l.free(a), 0, "from another device's turn");
    assert_eq!(set(2), 101);
    assert_eq!(l.info().1, 50 * PAGE, "a refused device changes nothing");
    let mut attributes = [0usize; 3];
    let of: extern "C" fn(*mut [usize; 3], usize) -> c_int = l.call("cudaPointerGetAttributes");
    let (_, b) = l.malloc(PAGE);
    assert_eq!(
        (of(&mut attributes, b + 5), attributes[0]),
        (0, 2 | 1 << 32)
    );
    of(&mut attributes, &raw const attributes as usize);
    assert_eq!(attributes[0] as u32, 0, "the host's own memory");
}

#[test]
#[ignore = "a case of devices_are_apart"]
fn case_one_visible() {
    let l = Library::open();
    let mut n = 0;
    l.call::<extern "C" fn(*mut c_int) -> c_int>("cudaGetDeviceCount")(&mut n);
    assert_eq!((n, l.info().1), (1, 50 * PAGE));
    l.call::<extern "C" fn(*mut c_int) -> c_int>("nvmlDeviceGetCount_v2")(&mut n);
    assert_eq!(n, 2, "NVML shows the machine");
    let mut h = 0usize;
    let handle: extern "C" fn(u32, *mut usize) -> c_int = l.call("nvmlDeviceGetHandleByIndex_v2");
    assert_eq!((handle(0, &mut h), h != 0), (0, true));
    let fabric: extern "C" fn(usize, *mut [u8; 36]) -> c_int =
        l.call("nvmlDeviceGetGpuFabricInfoV");
    let mut info = [9u8; 36];
    assert_eq!(
        (fabric(h, &mut info), info[28], info[29]),
        (0, 0, 9),
        "no fabric is a state, not an error"
    );
}

#[test]
#[ignore = "a case of devices_are_apart"]
fn case_none_visible() {
    let l = Library::open();
    let mut n = 7;
    assert_eq!(
        l.call::<extern "C" fn(*mut c_int) -> c_int>("cudaGetDeviceCount")(&mut n),
        100
    );
    assert_eq!((n, l.malloc(1).0), (0, 100));
}

#[test]
fn virtual_memory() {
    let lines = passes("case_virtual_memory");
    assert_eq!(event(&lines, "refused")["requested_bytes"], 89 * PAGE);
    assert_eq!(
        event(&lines, "unsupported")["what"],
        "cuMemExportToShareableHandle"
    );
}

#[test]
#[ignore = "a case of virtual_memory"]
fn case_virtual_memory() {
    let l = Library::open();
    let mut create: usize = 0;
    let ask: extern "C" fn(*const c_char, *mut usize, u64, *mut c_int) -> c_int =
        l.call("cudaGetDriverEntryPoint");
    let mut status = 7;
    assert_eq!(ask(c"cuMemCreate".as_ptr(), &mut create, 0, &mut status), 0);
    assert!(create != 0 && status == 0);
    let mut none = 7;
    ask(c"cuNeverHeardOf".as_ptr(), &mut none, 0, &mut status);
    assert_eq!((none, status), (0, 1));

    let reserve: extern "C" fn(*mut usize, usize, usize, usize, u64) -> c_int =
        l.call("cuMemAddressReserve");
    let create: extern "C" fn(*mut u64, usize, *const [i32; 8], u64) -> c_int =
        l.call("cuMemCreate");
    let map: extern "C" fn(usize, usize, usize, u64, u64) -> c_int = l.call("cuMemMap");
    let unmap: extern "C" fn(usize, usize) -> c_int = l.call("cuMemUnmap");
    let release: extern "C" fn(u64) -> c_int = l.call("cuMemRelease");
    let address_free: extern "C" fn(usize, usize) -> c_int = l.call("cuMemAddressFree");
    // Pinned, no handle type, on device 0.
    let props = [1, 0, 1, 0, 0, 0, 0, 0];
    let (mut at, mut handle) = (0, 0);
    assert_eq!(
        reserve(&mut at, 200 * PAGE, 0, 0, 0),
        0,
        "addresses are not memory"
    );
    assert_eq!(l.info().0, 90 * PAGE);
    assert_eq!(create(&mut handle, 2 * PAGE, &props, 0), 0);
    assert_eq!(l.info().0, 88 * PAGE);
    assert_eq!(map(at + PAGE, 2 * PAGE, 0, handle, 0), 0);
    assert_eq!(release(handle), 0);
    assert_eq!(l.info().0, 88 * PAGE, "mapped memory outlives its handle");
    let mut other = 0;
    assert_eq!(create(&mut other, 89 * PAGE, &props, 0), 2);
    assert_eq!(
        l.last_error(),
        0,
        "the driver's errors are not the runtime's"
    );
    assert_eq!(address_free(at, 200 * PAGE), 1, "still mapped");
    assert_eq!(
        (unmap(at + PAGE, 2 * PAGE), unmap(at + PAGE, 2 * PAGE)),
        (0, 1)
    );
    assert_eq!(release(handle), 1, "released twice");
    assert_eq!((address_free(at, 200 * PAGE), l.info().0), (0, 90 * PAGE));
    let export: extern "C" fn(*mut c_void, u64, c_int, u64) -> c_int =
        l.call("cuMemExportToShareableHandle");
    assert_eq!(export(std::ptr::null_mut(), handle, 1, 0), 801);
}

#[test]
fn refusals_name_themselves() {
    let lines = passes("case_refusals");
    assert_eq!(
        event(&lines, "missing-symbol")["symbol"],
        "cudaCreateTextureObject"
    );
    assert_eq!(event(&lines, "missing-symbol")["torch"], "no torch");
    let tables = lines.iter().filter(|l| l["symbol"] == "cuGetExportTable");
    let tables: Vec<_> = tables.map(|l| l["message"].as_str().unwrap()).collect();
    assert!(
        tables.len() == 1 && tables[0].starts_with("library-"),
        "once, with the library that asks: {tables:?}"
    );
    assert_eq!(event(&lines, "unsupported")["what"], "cudaIpc");
}

#[test]
#[ignore = "a case of refusals_name_themselves"]
fn case_refusals() {
    let l = Library::open();
    let text: extern "C" fn(c_int) -> *const c_char = l.call("cudaGetErrorString");
    let text = |e| {
        // SAFETY: the library gives zero-terminated texts that live for ever.
        let text = unsafe { std::ffi::CStr::from_ptr(text(e)) };
        text.to_str().unwrap()
    };
    assert_eq!(text(2), "out of memory");
    assert_eq!(
        l.call::<extern "C" fn() -> c_int>("cudaCreateTextureObject")(),
        801
    );
    assert!(
        text(801).contains("cudaCreateTextureObject"),
        "{}",
        text(801)
    );
    let (_, p) = l.malloc(PAGE);
    let mut handle = [0u8; 64];
    assert_eq!(
        l.call::<extern "C" fn(*mut [u8; 64], usize) -> c_int>("cudaIpcGetMemHandle")(
            &mut handle,
            p
        ),
        801
    );
    assert!(text(801).contains("between processes"), "{}", text(801));
    // what a CUDA runtime inside a library asks for, and what a profiler might
    static RUNTIME: [u8; 16] = *b"\x6b\xd5\xfb\x6c\x5b\xf4\xe7\x4a\x89\x87\xd9\x39\x12\xfd\x9d\xf9";
    static OTHER: [u8; 16] = [7; 16];
    let table: extern "C" fn(*mut usize, *const [u8; 16]) -> c_int = l.call("cuGetExportTable");
    for id in [&OTHER, &RUNTIME, &RUNTIME] {
        let mut found = 7;
        assert_eq!((table(&mut found, id), found), (801, 0));
    }
}

#[test]
fn values_and_copies() {
    passes("case_values");
}

#[test]
#[ignore = "a case of values_and_copies"]
fn case_values() {
    let l = Library::open();
    let copy: extern "C" fn(usize, usize, usize, c_int) -> c_int = l.call("cudaMemcpy");
    let (_, p) = l.malloc(PAGE);
    let (source, mut target) = ([5u8; 16], [9u8; 16]);
    copy(p, source.as_ptr() as usize, 16, 1);
    copy(target.as_mut_ptr() as usize, p, 16, 2);
    assert_eq!(target, [0; 16], "device memory reads as zeros");
    copy(
        target.as_mut_ptr() as usize,
        source.as_ptr() as usize,
        16,
        0,
    );
    assert_eq!(target, source, "host to host is real");
    let mut pinned = 0;
    assert_eq!(
        l.call::<extern "C" fn(*mut usize, usize, u32) -> c_int>("cudaHostAlloc")(
            &mut pinned,
            1 << 36,
            0
        ),
        0
    );
    copy(pinned + (1 << 35), source.as_ptr() as usize, 16, 0);
    copy(target.as_mut_ptr() as usize, pinned + (1 << 35), 16, 0);
    assert_eq!(
        target, source,
        "64 GiB of pinned memory cost what is touched"
    );
    assert_eq!(
        l.call::<extern "C" fn(usize) -> c_int>("cudaFreeHost")(pinned),
        0
    );
    assert_eq!(l.info().0, 89 * PAGE, "pinned memory is the host's");
}

#[test]
fn processes_of_a_run_share_a_device() {
    let dir = std::env::temp_dir().join(format!("tonnage-null-{}-shared", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (out, _) = in_process(
        "case_shared",
        &[("TONNAGE_NULL_WORLD_DIR", dir.to_str().unwrap())],
    );
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
#[ignore = "a case of processes_of_a_run_share_a_device"]
fn case_shared() {
    let l = Library::open();
    if std::env::var_os("CHILD").is_some() {
        // The parent's context and 20 pages, and this process's context.
        assert_eq!(l.info().0, 60 * PAGE);
        assert_eq!((l.malloc(61 * PAGE).0, l.malloc(30 * PAGE).0), (2, 0));
        return;
    }
    l.malloc(20 * PAGE);
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "case_shared", "--ignored"])
        .env("CHILD", "1")
        .env_remove("TONNAGE_NULL_REPORT");
    let out = child.output().unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    assert_eq!(l.info().0, 70 * PAGE, "a process that ended holds nothing");
}

#[test]
fn a_crash_leaves_a_readable_report() {
    let (out, lines) = in_process("case_crash", &[]);
    assert!(!out.status.success());
    assert_eq!(event(&lines, "peak")["allocated_bytes"], 30 * PAGE);
    assert!(lines.iter().all(|l| l["event"] != "exit"));
}

#[test]
#[ignore = "a case of a_crash_leaves_a_readable_report"]
fn case_crash() {
    let l = Library::open();
    l.malloc(30 * PAGE);
    // SAFETY: ends this process the hard way, which is the point.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

#[test]
fn no_devices_without_a_file() {
    let run = |devices: Option<&str>| {
        let mut c = Command::new(std::env::current_exe().unwrap());
        c.args(["--exact", "case_none_visible", "--ignored", "--nocapture"]);
        if let Some(d) = devices {
            c.env("TONNAGE_NULL_DEVICE", d);
        }
        c.output().unwrap()
    };
    assert!(run(None).status.success());
    let out = run(Some(
        "{\"schema\":\"tonnage.null-device/9\",\"devices\":[]}",
    ));
    assert!(out.status.success());
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("tonnage.null-device/9"),
        "the bad file is named"
    );
}
