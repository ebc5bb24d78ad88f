# METADATA
# title: Run-time behaviour
# description: |
#   What may be executed and loaded while the host runs beside the files of the IMA reference sets, for hosts on which `ima-files` asks too much.
#   Settings: `data.countersign.settings.runtime.path_prefixes` (beginnings of paths below which files may be unknown to the sets) and
#   `.runtime.modules` (digests of kernel modules that may be). What is on a deny-list is never accepted.
# scope: package
package countersign.lib.runtime

import data.countersign.settings

# METADATA
# title: runtime-paths
# description: Every file that the reference sets do not know lies below an accepted folder, and nothing denied was measured.
# custom:
#   check: runtime-paths
passed contains "runtime-paths" if {
	whole
	is_array(settings.runtime.path_prefixes)
	every file in input.ima.appraisal.unknown_files {
		ordinary(file.path)
	}
}

# METADATA
# title: runtime-modules
# description: Every kernel module that was loaded is a file of the reference sets or has an accepted digest, and nothing denied was measured.
# custom:
#   check: runtime-modules
passed contains "runtime-modules" if {
	whole
	is_array(settings.runtime.modules)
	every file in input.ima.appraisal.unknown_files {
		no_unknown_module(file)
	}
}

# The unknown files are all there, and no entry hides what was measured.
whole if {
	input.ima.entries > 0
	input.ima.violations == 0
	count(input.ima.appraisal.sets) > 0
	input.ima.appraisal.denied == 0
	input.ima.appraisal.unknown == count(input.ima.appraisal.unknown_files)
}

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
	"id": id,
	"message": "what the host ran is not known in full: no reference sets, violations, a denied file, or more unknown files than are listed",
	"want": "an appraised IMA list without violations and denied files, and at most 32 unknown files",
} if {
	some id in ["runtime-modules", "runtime-paths"]
	not whole
}

explanations contains {
	"id": "runtime-paths",
	"message": "an unknown file lies outside of the accepted folders",
	"subject": file.path,
	"want": "a file of the reference sets, or a path below settings.runtime.path_prefixes",
} if {
	some file in input.ima.appraisal.unknown_files
	not ordinary(file.path)
}

explanations contains {
	"id": "runtime-modules",
	"message": "a kernel module with an unknown digest was loaded",
	"subject": file.path,
	"got": file.digest,
	"want": "a file of the reference sets, or a digest of settings.runtime.modules",
} if {
	some file in input.ima.appraisal.unknown_files
	not no_unknown_module(file)
}
