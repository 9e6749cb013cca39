//! K15: the largest setting that fits. The result fits, the next step does not, by `estimate`; every smaller one fits; more memory never
//! gives a smaller answer.

mod common;
use common::*;
use tonnage_catalog::gpu;
use tonnage_core::verdict::{Device, Outcome};
use tonnage_plan::cards::largest::largest;
use tonnage_plan::cards::{Here, Tried, of_memory};

#[test]
fn k15_the_result_fits_and_the_next_does_not() {
    let card = "gtx-1070";
    let d = Device::of(gpu(card).unwrap()).unwrap();
    for (job, setting, key) in [
        (gpt2(), "batch", "train.micro_batch_size"),
        (
            with(
                &gpt2(),
                &[
                    ("train.micro_batch_size", "32"),
                    ("train.precision", "fp32"),
                ],
            ),
            "length",
            "train.seq_len",
        ),
        (
            with(
                &llama(),
                &[
                    ("train.micro_batch_size", "8"),
                    ("lora.r", "8"),
                    ("lora.targets", "all-linear"),
                ],
            ),
            "rank",
            "lora.r",
        ),
    ] {
        let a = largest(&job, &d, setting, None)
            .unwrap_or_else(|bad| panic!("{setting}: {}", shown(&bad)));
        assert_eq!(a.setting, key);
        let fits = a.fits.as_ref().unwrap_or_else(|| panic!("{setting}"));
        let says = |n: u64| estimated(&with(&job, &[(key, &n.to_string())]), card);
        let v = says(fits.value);
        assert_eq!(
            (v.outcome, v.margin_bytes),
            (Outcome::Fits, fits.margin_bytes),
            "{setting}"
        );
        let Some(next) = &a.next else {
            assert!(a.capped.is_some(), "{setting}");
            continue;
        };
        assert_eq!(next.value, fits.value + a.step);
        let v = says(next.value);
        assert_eq!(
            (v.outcome, v.margin_bytes),
            (next.outcome, next.margin_bytes),
            "{setting}"
        );
        assert_ne!(v.outcome, Outcome::Fits);
        if let Some(fails) = &a.fails {
            assert_eq!(says(fails.value).outcome, Outcome::No);
            let runs = a.runs.as_ref().unwrap();
            assert_ne!(says(runs.value).outcome, Outcome::No);
            assert!(runs.value >= fits.value);
        }
    }
}

#[test]
fn k15_every_smaller_value_fits_too() {
    let d = of_memory(&gpu("rtx-3060-12gb").unwrap(), 4 << 30, Here::default()).unwrap();
    let job = gpt2();
    let a = largest(&job, &d, "batch", None).unwrap();
    let top = a.fits.unwrap().value;
    assert!(top > 3, "{top}");
    for b in 1..=top {
        let j = with(&job, &[("train.micro_batch_size", &b.to_string())]);
        assert_eq!(
            Tried::new(&j, &d.gpu).unwrap().outcome(&d),
            Outcome::Fits,
            "{b}"
        );
    }
}

#[test]
fn k15_more_memory_never_gives_a_smaller_answer() {
    let like = gpu("rtx-3060-12gb").unwrap();
    for (job, setting) in [
        (gpt2(), "batch"),
        (with(&gpt2(), &[("train.micro_batch_size", "8")]), "length"),
    ] {
        let mut last = 0;
        for gib in [1u64, 2, 3, 4, 6, 8] {
            let d = of_memory(&like, gib << 30, Here::default()).unwrap();
            let n = largest(&job, &d, setting, None)
                .unwrap()
                .fits
                .map_or(0, |p| p.value);
            assert!(n >= last, "{setting} at {gib} GiB: {n} after {last}");
            last = n;
        }
        assert!(last > 8, "{last}");
    }
}

#[test]
fn k15_a_limit_of_the_model_is_said() {
    let d = Device::of(gpu("h200-sxm").unwrap()).unwrap();
    let job = with(&gpt2(), &[("train.micro_batch_size", "1")]);
    let a = largest(&job, &d, "length", None).unwrap();
    assert_eq!(a.fits.unwrap().value, 1024);
    assert!(a.next.is_none() && a.capped.unwrap().contains("1024"));
    let bad = largest(&job, &d, "lenght", None).unwrap_err();
    assert!(shown(&bad).contains("no setting"), "{}", shown(&bad));
    assert!(largest(&job, &d, "precision", None).is_err());
}
