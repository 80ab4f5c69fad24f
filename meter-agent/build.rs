//! Embeds the eBPF object.
fn main() {
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap());
    let object = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/meter.bpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = std::fs::read(&object).unwrap_or_default();
    std::fs::write(out.join("meter.bpf.o"), bytes).unwrap();
    std::fs::write(out.join("object.rs"), "#[repr(C, align(8))] struct Aligned<T: ?Sized>(T); static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/meter.bpf.o\"))); /// The eBPF object that this build carries; empty for none.\npub static OBJECT: &[u8] = &ALIGNED.0;").unwrap();
}
