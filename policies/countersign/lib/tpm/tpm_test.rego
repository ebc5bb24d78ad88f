package countersign.lib.tpm_test

import data.countersign.lib.tpm

good := {
	"host": {"simulated": false, "ek_root": "CN=Vendor", "tpm": {"manufacturer": "id:4E544300"}},
	"quote": {"firmware_version": "0007000200010000"},
	"boot": {"events": [{"index": 1, "pcr": 0, "type": "EV_S_CRTM_VERSION", "authentic": true, "text": "1.2"}]},
}

settings := {
	"tpm": {"firmware": {"id:4E544300": "0007000200000000"}, "ek_roots": ["CN=Vendor"]},
	"firmware": {"versions": ["1.2"]},
}

all := {"ek-root", "firmware-version", "hardware-tpm", "tpm-firmware"}

test_good if tpm.passed == all with input as good with data.countersign.settings as settings

test_old_tpm if {
	every version in ["0007000100000000", "7", "", "0007000200010000x"] {
		bad := object.union(good, {"quote": {"firmware_version": version}})
		tpm.passed == all - {"tpm-firmware"} with input as bad with data.countersign.settings as settings
	}
}

test_other_manufacturer if {
	bad := object.union(good, {"host": {"tpm": {"manufacturer": "id:00000000"}}})
	tpm.passed == all - {"tpm-firmware"} with input as bad with data.countersign.settings as settings
}

test_simulated if tpm.passed == all - {"hardware-tpm"} with input as object.union(good, {"host": {"simulated": true}}) with data.countersign.settings as settings

test_other_root if tpm.passed == all - {"ek-root"} with input as object.union(good, {"host": {"ek_root": "CN=Other"}}) with data.countersign.settings as settings

test_old_firmware if {
	bad := object.union(good, {"boot": {"facts": {"firmware_version": fact("1.1", "authenticated")}}})
	tpm.passed == all - {"firmware-version"} with input as bad with data.countersign.settings as settings
}

fact(text, strength) := {"value": text, "strength": strength, "log": "firmware", "events": [1]}

test_a_version_that_is_only_named_proves_nothing if {
	boot := {"events": [], "facts": {"firmware_version": fact("1.2", "authenticated")}}
	tpm.passed == all with input as object.union(good, {"boot": boot}) with data.countersign.settings as settings
	named := {"events": [], "facts": {"firmware_version": fact("1.2", "named")}}
	tpm.passed == all - {"firmware-version"} with input as object.union(good, {"boot": named}) with data.countersign.settings as settings
}

test_no_settings if tpm.passed == {"hardware-tpm"} with input as good with data.countersign.settings as {}

test_no_input if tpm.passed == set() with input as {} with data.countersign.settings as settings
