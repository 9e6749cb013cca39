//! Layouts against those that torch 2.11.0 (CPU, `t.stride()`) gives for the expression named at each case.

use tonnage_sim::Shape;
use tonnage_sim::shape::{
    Strides, elementwise_strides, is_contiguous, is_non_overlapping_and_dense, view_strides,
};

/// A layout made as the Python expressions make it.
#[derive(Clone, Copy)]
struct T(Shape, Strides);

fn t(d: &[u64]) -> T {
    let s = Shape::new(d);
    T(s, s.contiguous_strides())
}

impl T {
    fn permute(self, order: &[usize]) -> T {
        let d: Vec<u64> = order.iter().map(|i| self.0.dims()[*i] as u64).collect();
        let mut st = [0; 6];
        for (i, k) in order.iter().enumerate() {
            st[i] = self.1[*k];
        }
        T(Shape::new(&d), st)
    }
    /// `transpose(1, 2)` of four dimensions.
    fn t12(self) -> T {
        self.permute(&[0, 2, 1, 3])
    }
    fn last(self, n: u64) -> T {
        T(self.0.with(-1, n), self.1)
    }
    fn expand(self, dim: usize, n: u64) -> T {
        let mut st = self.1;
        st[dim] = 0;
        T(self.0.with(dim as isize, n), st)
    }
}

fn elementwise(ops: &[T]) -> Vec<u64> {
    let shape = ops.iter().skip(1).fold(ops[0].0, |s, o| s.broadcast(&o.0));
    let operands: Vec<(&Shape, &Strides)> = ops.iter().map(|o| (&o.0, &o.1)).collect();
    elementwise_strides(&shape, &operands)[..shape.ndim()].to_vec()
}

#[test]
fn elementwise_outputs_have_the_strides_of_torch() {
    let a = t(&[2, 3, 4, 5]);
    let cases: &[(&str, Vec<T>, &[u64])] = &[
        ("a.transpose(1,2)+1", vec![a.t12(), t(&[])], &[60, 5, 20, 1]),
        (
            "a.transpose(1,2)+empty(2,4,3,5)",
            vec![a.t12(), t(&[2, 4, 3, 5])],
            &[60, 5, 20, 1],
        ),
        (
            "empty(2,4,3,5)+a.transpose(1,2)",
            vec![t(&[2, 4, 3, 5]), a.t12()],
            &[60, 15, 5, 1],
        ),
        (
            "a.transpose(1,2)+empty(5)",
            vec![a.t12(), t(&[5])],
            &[60, 5, 20, 1],
        ),
        (
            "empty(5)+a.transpose(1,2)",
            vec![t(&[5]), a.t12()],
            &[60, 5, 20, 1],
        ),
        (
            "a.transpose(1,2)*empty(2,1,3,5)",
            vec![a.t12(), t(&[2, 1, 3, 5])],
            &[60, 5, 20, 1],
        ),
        (
            "empty(1,3,4,5).transpose(1,2)*empty(1,1,3,5)",
            vec![t(&[1, 3, 4, 5]).t12(), t(&[1, 1, 3, 5])],
            &[60, 5, 20, 1],
        ),
        (
            "empty(2,3,1,5).transpose(1,2)*empty(2,1,3,5)",
            vec![t(&[2, 3, 1, 5]).t12(), t(&[2, 1, 3, 5])],
            &[15, 15, 5, 1],
        ),
        (
            "empty(2,1,4,5).transpose(1,2)*empty(2,1,1,5)",
            vec![t(&[2, 1, 4, 5]).t12(), t(&[2, 1, 1, 5])],
            &[20, 5, 20, 1],
        ),
        (
            "empty(2,1,5).expand(2,3,5)+1",
            vec![t(&[2, 1, 5]).expand(1, 3), t(&[])],
            &[15, 5, 1],
        ),
        (
            "empty(2,1,5).expand(2,3,5)+empty(2,3,1)",
            vec![t(&[2, 1, 5]).expand(1, 3), t(&[2, 3, 1])],
            &[15, 5, 1],
        ),
        (
            "empty(2,3,8)[...,:4]+1",
            vec![t(&[2, 3, 8]).last(4), t(&[])],
            &[12, 4, 1],
        ),
        (
            "empty(2,3,8).transpose(0,1)[...,:4]+1",
            vec![t(&[2, 3, 8]).permute(&[1, 0, 2]).last(4), t(&[])],
            &[4, 12, 1],
        ),
        (
            "-empty(2,3,4,8).transpose(1,2)[...,:4]",
            vec![t(&[2, 3, 4, 8]).t12().last(4)],
            &[48, 4, 16, 1],
        ),
        (
            "empty_like(empty(2,4,1,3,5).expand(2,4,2,3,5))",
            vec![t(&[2, 4, 1, 3, 5]).expand(2, 2)],
            &[120, 30, 15, 5, 1],
        ),
        (
            "empty_like(a.permute(3,1,0,2))",
            vec![a.permute(&[3, 1, 0, 2])],
            &[1, 20, 60, 5],
        ),
        (
            "empty(3,1)*empty(1,4)",
            vec![t(&[3, 1]), t(&[1, 4])],
            &[4, 1],
        ),
        (
            "empty(4,3).t()*empty(4)",
            vec![t(&[4, 3]).permute(&[1, 0]), t(&[4])],
            &[1, 3],
        ),
        (
            "empty(2,3,4).transpose(1,2)*empty(2,4,1)",
            vec![t(&[2, 3, 4]).permute(&[0, 2, 1]), t(&[2, 4, 1])],
            &[12, 1, 4],
        ),
        (
            "empty(2,4,1)*empty(2,3,4).transpose(1,2)",
            vec![t(&[2, 4, 1]), t(&[2, 3, 4]).permute(&[0, 2, 1])],
            &[12, 1, 4],
        ),
        (
            "where(empty(1,1,4,4), empty(2,3,4,4).transpose(2,3), empty(()))",
            vec![
                t(&[1, 1, 4, 4]),
                t(&[2, 3, 4, 4]).permute(&[0, 1, 3, 2]),
                t(&[]),
            ],
            &[48, 16, 4, 1],
        ),
        (
            "empty(2,3,1,5).transpose(1,2)+1",
            vec![t(&[2, 3, 1, 5]).t12(), t(&[])],
            &[15, 5, 5, 1],
        ),
        (
            "empty(2,3,1,5).transpose(1,2)+empty(2,1,3,5)",
            vec![t(&[2, 3, 1, 5]).t12(), t(&[2, 1, 3, 5])],
            &[15, 15, 5, 1],
        ),
        (
            "empty(1,1,3).permute(2,1,0)+1",
            vec![t(&[1, 1, 3]).permute(&[2, 1, 0]), t(&[])],
            &[1, 3, 3],
        ),
        (
            "empty(3,1,2).permute(2,1,0)+empty(2,1,3)",
            vec![t(&[3, 1, 2]).permute(&[2, 1, 0]), t(&[2, 1, 3])],
            &[1, 2, 2],
        ),
    ];
    let mut wrong = Vec::new();
    for (name, ops, want) in cases {
        let got = elementwise(ops);
        if got != *want {
            wrong.push(format!("{name}: {got:?}, torch {want:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn views_have_the_strides_of_torch_or_need_a_copy() {
    let a = t(&[2, 3, 4, 5]);
    type Case<'a> = (&'a str, T, &'a [u64], Option<&'a [u64]>);
    let cases: &[Case] = &[
        ("merged", a, &[6, 20], Some(&[20, 1])),
        ("split", a, &[2, 3, 2, 2, 5], Some(&[60, 20, 10, 5, 1])),
        ("transposed, heads merged", a.t12(), &[2, 4, 15], None),
        ("transposed, rows merged", a.t12(), &[8, 15], None),
        (
            "transposed, a 1 appended",
            a.t12(),
            &[2, 4, 3, 5, 1],
            Some(&[60, 5, 20, 1, 1]),
        ),
        (
            "transposed, batch of 1",
            t(&[1, 3, 4, 5]).t12(),
            &[4, 15],
            None,
        ),
        (
            "transposed, length 1",
            t(&[2, 3, 1, 5]).t12(),
            &[2, 1, 15],
            Some(&[15, 15, 1]),
        ),
        (
            "repeated heads",
            t(&[2, 4, 1, 3, 5]).expand(2, 2),
            &[2, 8, 3, 5],
            None,
        ),
        (
            "repeated single head",
            t(&[2, 1, 1, 3, 5]).expand(2, 2),
            &[2, 2, 3, 5],
            Some(&[15, 0, 5, 1]),
        ),
        (
            "half of the last dimension",
            t(&[2, 3, 8]).last(4),
            &[6, 4],
            Some(&[8, 1]),
        ),
        (
            "half of the last dimension, flat",
            t(&[2, 3, 8]).last(4),
            &[24],
            None,
        ),
        (
            "shifted, batch of 1",
            T(Shape::new(&[1, 4, 8]), [40, 8, 1, 0, 0, 0]),
            &[4, 8],
            Some(&[8, 1]),
        ),
        (
            "shifted, batch of 2",
            T(Shape::new(&[2, 4, 8]), [40, 8, 1, 0, 0, 0]),
            &[8, 8],
            None,
        ),
        ("one element as a scalar", t(&[1, 1]), &[], Some(&[])),
        ("a scalar as ones", t(&[]), &[1, 1, 1], Some(&[1, 1, 1])),
    ];
    for (name, x, shape, want) in cases {
        let shape = Shape::new(shape);
        let got = view_strides(&x.0, &x.1, &shape).map(|s| s[..shape.ndim()].to_vec());
        assert_eq!(got.as_deref(), *want, "{name}");
    }
}

#[test]
fn density_and_contiguity_ignore_dimensions_of_one() {
    let a = t(&[2, 3, 1, 5]).t12();
    assert!(is_contiguous(&a.0, &a.1));
    let b = t(&[2, 3, 4, 5]).t12();
    assert!(!is_contiguous(&b.0, &b.1));
    assert!(is_non_overlapping_and_dense(&b.0, &b.1));
    let half = b.last(3);
    assert!(!is_non_overlapping_and_dense(&half.0, &half.1));
    let repeated = t(&[2, 1, 5]).expand(1, 3);
    assert!(!is_non_overlapping_and_dense(&repeated.0, &repeated.1));
}
