//! References of images: what is read is written the same way again.
#![no_main]

use engine::images::reference::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<Reference>() else { return };
    let whole = reference.to_string();
    assert_eq!(whole.parse::<Reference>().expect("what we write is a reference"), reference);
    let familiar = reference.familiar();
    assert_eq!(familiar.parse::<Reference>().expect("so is its short form"), reference);
    assert_eq!(reference.clone().or_latest().or_latest(), reference.or_latest());
});
