//! The command line: texts in `cmd/`.

#[test]
fn texts() {
    trycmd::TestCases::new().case("tests/cmd/*.toml").env("COLUMNS", "120");
}
