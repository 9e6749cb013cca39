//! The rest of the libraries' functions, by rule (build.rs): functions that only work on device memory succeed, those
//! that make an object hand out a handle, those that ask for a workspace get 0, all others refuse by name.

use crate::missing::{call, done, handle};
use crate::types::{OK, Out};

/// Makes an object: its handle is the first argument's target.
fn made(out: &Out<usize>) -> i32 {
    out.set(handle());
    OK
}

macro_rules! done {
    ($($name:ident)*) => { api! { $(fn $name() -> i32 { done() })* } };
}
macro_rules! made {
    ($($name:ident)*) => { api! { $(fn $name(out: Out<usize>) -> i32 { made(&out) })* } };
}
macro_rules! refused {
    ($code:literal $($name:ident)*) => { api! { $(fn $name() -> i32 { call(stringify!($name), $code) })* } };
}
/// Zero for the workspace: the sizes that the real libraries ask for are not public.
macro_rules! zero {
    ($($name:ident $kind:ident ($($before:ident)*);)*) => {
        api! { $(fn $name($($before: usize,)* out: Out<$kind>) -> i32 { out.set(0); OK })* }
    };
}
macro_rules! zero_two {
    ($($name:ident $kind:ident ($($before:ident)*);)*) => {
        api! { $(fn $name($($before: usize,)* out: Out<$kind>, second: Out<$kind>) -> i32 {
            out.set(0);
            second.set(0);
            OK
        })* }
    };
}

include!(concat!(env!("OUT_DIR"), "/rest.rs"));
