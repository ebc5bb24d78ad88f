package countersign.lib.runtime_test

import data.countersign.lib.runtime

good := {"ima": {"files": [
	{"path": "boot_aggregate", "digest": "sha256:00"},
	{"path": "/usr/bin/attest", "digest": "sha256:01"},
	{"path": "/usr/lib/modules/6.1/nvme.ko.xz", "digest": "sha256:02"},
]}}

settings := {"runtime": {"path_prefixes": ["/usr/", "/etc/"], "modules": ["sha256:02"]}}

all := {"runtime-modules", "runtime-paths"}

ran(file) := {"ima": {"files": array.concat(good.ima.files, [file])}}

test_good if runtime.passed == all with input as good with data.countersign.settings as settings

test_elsewhere if {
	every path in ["/tmp/x", "/home/u/x", "usr/bin/x", "/usr/../tmp/x", ""] {
		runtime.passed == all - {"runtime-paths"} with input as ran({"path": path, "digest": "sha256:09"}) with data.countersign.settings as settings
	}
}

test_unknown_module if {
	every path in ["/usr/lib/x.ko", "/usr/lib/x.ko.gz", "/usr/lib/x.ko.zst"] {
		bad := ran({"path": path, "digest": "sha256:09"})
		runtime.passed == all - {"runtime-modules"} with input as bad with data.countersign.settings as settings
	}
}

test_no_settings if runtime.passed == set() with input as good with data.countersign.settings as {}

test_no_input if runtime.passed == set() with input as {} with data.countersign.settings as settings
