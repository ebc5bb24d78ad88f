package countersign.lib.runtime_test

import data.countersign.lib.runtime

good := {"ima": {
	"entries": 3, "violations": 0,
	"appraisal": {"sets": ["os"], "unknown": 0, "denied": 0, "unknown_files": [], "denied_files": []},
}}

settings := {"runtime": {"path_prefixes": ["/opt/", "/usr/lib/"], "modules": ["sha256:02"]}}

all := {"runtime-modules", "runtime-paths"}

ran(file) := object.union(good, {"ima": {"appraisal": {"unknown": 1, "unknown_files": [file]}}})

test_good if {
	runtime.passed == all with input as good with data.countersign.settings as settings
	runtime.passed == all with input as good with data.countersign.settings as {"runtime": {"path_prefixes": [], "modules": []}}
}

test_accepted_although_unknown if {
	runtime.passed == all with input as ran({"path": "/opt/x", "digest": "sha256:09"}) with data.countersign.settings as settings
	runtime.passed == all with input as ran({"path": "/usr/lib/x.ko", "digest": "sha256:02"}) with data.countersign.settings as settings
}

test_elsewhere if {
	every path in ["/tmp/x", "/home/u/x", "opt/x", "/opt/../tmp/x", ""] {
		bad := ran({"path": path, "digest": "sha256:09"})
		runtime.passed == all - {"runtime-paths"} with input as bad with data.countersign.settings as settings
		some reason in runtime.explanations with input as bad with data.countersign.settings as settings
		reason.subject == path
	}
}

test_unknown_module if {
	every path in ["/usr/lib/x.ko", "/usr/lib/x.ko.gz", "/usr/lib/x.ko.zst"] {
		bad := ran({"path": path, "digest": "sha256:09"})
		runtime.passed == all - {"runtime-modules"} with input as bad with data.countersign.settings as settings
		some reason in runtime.explanations with input as bad with data.countersign.settings as settings
		reason.got == "sha256:09"
	}
}

test_not_known_in_full if {
	every change in [{"entries": 0}, {"violations": 1}, {"appraisal": {"denied": 1}}, {"appraisal": {"unknown": 33}}, {"appraisal": {"sets": []}}] {
		bad := object.union(good, {"ima": change})
		runtime.passed == set() with input as bad with data.countersign.settings as settings
		ids := {reason.id | some reason in runtime.explanations} with input as bad with data.countersign.settings as settings
		ids == all
	}
}

test_no_reference_sets if runtime.passed == set() with input as {"ima": {"entries": 3, "violations": 0}} with data.countersign.settings as settings

test_no_settings if runtime.passed == set() with input as good with data.countersign.settings as {}

test_no_input if runtime.passed == set() with input as {} with data.countersign.settings as settings
