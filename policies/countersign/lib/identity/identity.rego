# METADATA
# title: Identity of host and workload
# description: |
#   Settings: `data.countersign.settings.hosts` (host ids) and `data.countersign.settings.workloads`, an object from workload id to
#   {payload_root, policy}.
# scope: package
package countersign.lib.identity

import data.countersign.settings

# METADATA
# title: release
# description: The decision is about a release, or about a run of one that goes on, and names a workload.
# custom:
#   check: release
passed contains "release" if {
	input.purpose in {"release", "run"}
	is_string(input.workload.id)
	count(input.workload.id) > 0
}

# METADATA
# title: host-known
# description: The host's id is listed.
# custom:
#   check: host-known
passed contains "host-known" if {
	is_string(input.host.id)
	input.host.id in settings.hosts
}

# METADATA
# title: workload-known
# description: The workload is listed, with this payload root and policy digest.
# custom:
#   check: workload-known
passed contains "workload-known" if {
	wanted := settings.workloads[input.workload.id]
	wanted.payload_root == input.workload.payload_root
	wanted.policy == input.workload.policy
}

explanations contains {
	"id": "release",
	"message": "this policy decides about releases and their runs only",
	"got": input.purpose,
	"want": "release",
}

explanations contains {
	"id": "host-known",
	"message": "this host is not among those of the policy",
	"got": input.host.id,
	"want": "a host id of settings.hosts",
}

explanations contains {
	"id": "workload-known",
	"message": "this workload is not among those of the policy, or has another payload or policy",
	"got": input.workload.id,
	"want": "a workload of settings.workloads",
}
