# METADATA
# title: Host policy for development
# description: The boot chain against reference values, and nothing else. Never for production.
# scope: package
package countersign.host

import data.countersign.lib.boot_chain
import data.countersign.lib.verdict as document
import data.countersign.settings

required := {"boot-chain", "boot-log", "exit-boot-services", "reference-missing", "sha256-bank"}

# METADATA
# title: Verdict
# entrypoint: true
default verdict := {"allow": false, "reasons": [{"id": "policy-undefined", "message": "the host policy came to no verdict"}], "obligations": {}}

verdict := document.of(required, boot_chain.passed, boot_chain.explanations, settings.obligations)
