package metrics

// Doc documents a metric, whose labels have values of closed sets and names of the configuration.
type Doc struct {
	Name   string
	Type   string // counter, gauge or histogram
	Labels []string
	Text   string
}

const (
	counter   = "counter"
	gauge     = "gauge"
	histogram = "histogram"
)

var (
	calls = Doc{"gssproxyd_calls_total", counter, []string{"procedure", "service", "outcome", "reason"},
		"Calls that were decided: allowed, denied for a reason, or routine, which is a refusal that libraries provoke on their own and do without. With mode = observe what would have been refused is observed besides, and counted as what became of it too."}
	callDuration = Doc{"gssproxyd_call_duration_seconds", histogram, []string{"procedure"},
		"How long calls took, from the arguments decoded to the decision."}
	phaseDuration = Doc{"gssproxyd_phase_duration_seconds", histogram, []string{"phase"},
		"How long parts of calls took: queue, match, keys, crypto, replay, kdc and nss."}
	connectionsDenied = Doc{"gssproxyd_connections_denied_total", counter, []string{"reason"},
		"Connections that were refused or closed, by reason."}
	clockSkew = Doc{"gssproxyd_clock_skew_seconds", histogram, []string{"clock"},
		"How far clocks of initiators are ahead of this host's or behind it, by authenticators that have verified; those refused for that are among them."}

	buildInfo = Doc{"gssproxyd_build_info", gauge, []string{"version", "goversion"},
		"1, with the version of the program and of Go."}
	configurationRead = Doc{"gssproxyd_configuration_read_timestamp_seconds", gauge, nil,
		"When the configuration in force was read, in seconds since 1970."}
	configurationGood = Doc{"gssproxyd_configuration_last_read_successful", gauge, nil,
		"1 if the last reading of the configuration was put in force, 0 if it had errors and the former one stays."}
	limitUsed = Doc{"gssproxyd_limit_used", gauge, []string{"resource"},
		"How much callers hold of what is limited: connections, buffer_bytes, cache_bytes, kdc_exchanges, name_service_questions, large_calls."}
	limitMax = Doc{"gssproxyd_limit_max", gauge, []string{"resource"},
		"How much of that there is, for all together."}
	replayCache = Doc{"gssproxyd_replay_cache_bytes", gauge, nil,
		"The size of the replay cache files, as of the last accept."}
	keytabKeys = Doc{"gssproxyd_keytab_keys", gauge, []string{"keytab"},
		"How many usable keys a keytab has. Keytabs of single users (%U in cred_store) are not among these."}
	keytabNewest = Doc{"gssproxyd_keytab_newest_key_timestamp_seconds", gauge, []string{"keytab"},
		"When the newest key of a keytab was made, as the file says, in seconds since 1970."}
	keytabDrift = Doc{"gssproxyd_keytab_kvno_drift", gauge, []string{"keytab"},
		"How many kinds of tickets, by principal, version and type of the key, came in the last day for keys newer than those in the keytab. That is what tickets say of themselves."}
	storeContact = Doc{"gssproxyd_store_contact_timestamp_seconds", gauge, []string{"store"},
		"When a key store has answered last, in seconds since 1970; 0 if it has not since the start."}
	entryRevision = Doc{"gssproxyd_store_entry_revision", gauge, []string{"keytab"},
		"The revision of what is in force of a key store's entry, within the store's epoch. An entry of which there is nothing is not among these."}
	entryIssued = Doc{"gssproxyd_store_entry_issued_timestamp_seconds", gauge, []string{"keytab"},
		"When the store has made that, in seconds since 1970."}
	previousEnding = Doc{"gssproxyd_store_previous_key_ending", gauge, []string{"keytab"},
		"1 if a previous key of a key store's entry has opened tickets of late, and the store takes it away soon; else 0."}
	auditLost = Doc{"gssproxyd_audit_lost_events_total", counter, nil,
		"Events that should be in the audit log and are not."}
)

// Docs documents every metric but those of Go's runtime and of the process, in the order of the
// manual.
var Docs = []Doc{
	calls, callDuration, phaseDuration, connectionsDenied, clockSkew, limitUsed, limitMax, replayCache, keytabKeys, keytabNewest, keytabDrift, storeContact, entryRevision, entryIssued, previousEnding,
	configurationRead, configurationGood, auditLost, buildInfo,
}
