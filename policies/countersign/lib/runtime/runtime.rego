# METADATA
# title: Run-time behaviour
# description: |
#   What may be executed and loaded while the host runs, by the IMA list. Settings: `data.countersign.settings.runtime.path_prefixes`
#   (accepted beginnings of paths) and `.runtime.modules`, accepted digests of kernel modules.
# scope: package
package countersign.lib.runtime

import data.countersign.settings

# METADATA
# title: runtime-paths
# description: Nothing was executed outside of the accepted folders.
# custom:
#   check: runtime-paths
passed contains "runtime-paths" if {
	count(input.ima.files) > 0
	count(settings.runtime.path_prefixes) > 0
	every file in input.ima.files {
		ordinary(file.path)
	}
}

# METADATA
# title: runtime-modules
# description: Every kernel module that was loaded has an accepted digest.
# custom:
#   check: runtime-modules
passed contains "runtime-modules" if {
	count(input.ima.files) > 0
	is_array(settings.runtime.modules)
	every file in input.ima.files {
		no_unknown_module(file)
	}
}

ordinary(path) if path == "boot_aggregate"

ordinary(path) if {
	not_climbing(path)
	some prefix in settings.runtime.path_prefixes
	startswith(path, prefix)
}

not_climbing(path) if contains(path, "/../") == false

is_module(path) := regex.match("[.]ko([.](gz|xz|zst))?$", path)

no_unknown_module(file) if is_module(file.path) == false

no_unknown_module(file) if {
	is_module(file.path)
	file.digest in settings.runtime.modules
}

explanations contains {
	"id": "runtime-paths",
	"message": "something was executed outside of the accepted folders",
	"subject": file.path,
	"want": "a path below settings.runtime.path_prefixes",
} if {
	some file in input.ima.files
	not ordinary(file.path)
}

explanations contains {
	"id": "runtime-modules",
	"message": "a kernel module with an unknown digest was loaded",
	"subject": file.path,
	"got": file.digest,
	"want": "a digest of settings.runtime.modules",
} if {
	some file in input.ima.files
	not no_unknown_module(file)
}
