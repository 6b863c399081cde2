package e2e

import "regexp"

// A difference is what our plugin does otherwise, and why.
type difference struct {
	where *regexp.Regexp // of "WORLD | SCRIPT: LINE"
	what  *regexp.Regexp // "WHAT OURS, not THEIRS"
	why   string
}

func but(where, what, why string) difference {
	return difference{regexp.MustCompile(where), regexp.MustCompile(what), why}
}

// Parts of the patterns below.
const (
	served    = `(FIRST|REMOTE_ONLY).* remote \| ` // by the daemon, or at least it can be
	onlyThere = `REMOTE_ONLY.* \| `
	noDaemon  = `(FIRST|REMOTE_ONLY)( local)? \| `
	krb5OID   = `0401000b06092a864886f712010202\w+`
)

// fromDebians is what our plugin does otherwise than Debian's.
var fromDebians = []difference{
	// Names.
	but(`names: authorize 21 alice`, `^major 0x100000, not 0xf0000$`, "it asks libkrb5, and does not compare what the names look like"),
	but(`names: display 27`, `^(major 0xd0000, not 0|asks IMPORT_AND_CANON_NAME, not none)$`, "a name that is none is not displayed"),
	but(`names: (canonicalize|display|import_name) `, `^major 0, not 0x1[0-9a-f]{6}$`,
		"it canonicalizes names without a type and exported ones"),
	but(`names: (export_name|export_composite|inquire_name|get_attribute|set_attribute|delete_attribute|map_name|localname|authorize) `, `^major 0x?[0-9a-f]*, not 0x10[02]0000$`,
		"those names are names here, and not the nothing that Debian's canonicalized them to"),
	but(`names: display (17|20|21|23|28)`, `^(name|type) `,
		"a canonical name is displayed as the principal it stands for, as libkrb5 does"),
	but(`names: display 2[56]`, `^major 0, not`, "it knows anonymous names, and those given as a pointer to a principal"),
	but(`(names|accept): export_name `, `^exported `+krb5OID+`, not `, "a name is exported under Kerberos' OID, and canonical"),
	but(`names: compare 20 21`, `^equal 0, not 1$`, "a service and a user are not the same"),
	but(`names: get_attribute 20 nothing`, `^text `, "it passes libkrb5's text on"),
	but(served+`names: localname `, `^asks IMPORT_AND_CANON_NAME, not none`, "it asks the daemon, since the name is one"),
	but(`accept: authorize 2 alice`, `^major 0x100000, not 0x1000000$`, "it asks libkrb5, which says no: there is no such user"),
	but(`LOCAL_FIRST remote \| accept: localname 2 krb5`, `^asks none, not IMPORT_AND_CANON_NAME$`,
		"LOCAL_FIRST is local first for names too"),
	but(served+`accept: inquire_name 2`, `^attributes urn:mspac:.*, not none`, "the names that the daemon gives have their attributes"),

	// Lifetimes and texts.
	but(`\| `, `^life(_accept)? (\d+h|indefinite), not 0h$`, "a remote credential has its lifetime"),
	but(noDaemon, `^text ".*gssproxyd at .*", not "(Input/output error|SPNEGO cannot find mechanisms to negotiate)"$`,
		"it says where the daemon is missed"),
	but(`acquire initiate: inquire_cred_by_oid 1`, `^text ".*", not "Unknown error"$`, "it says what a remote credential has not"),

	// Credentials.
	but(onlyThere+`stores: (acquire|inquire_cred) [35]`, `^(major 0x[7d]0000, not 0|asks ACQUIRE_CRED, not none|name alice@.*, not bob@.*)$`,
		"REMOTE_ONLY is that, also if the program names a cache"),
	but(onlyThere+`(stores: acquire [46]|store: acquire 2) `, `^major 0xd0000, not 0x70000$`,
		"it says of a daemon that is not there that the call has failed, and not that there are no credentials"),
	but(`REMOTE_.*local remote \| (acquire (initiate|accept)|add|impersonate): (acquire|inquire_cred) `, `^(major|name) `,
		"the user's tickets are still in the cache, and no handle in their place"),
	but(`local remote \| acquire initiate: inquire_cred -`, `^major 0, not 0x70000$`, "the user's tickets are still in the cache"),
	but(`REMOTE_FIRST local remote \| acquire initiate: acquire [78] `, `^(asks (ACQUIRE_CRED,)?ACQUIRE_CRED,ACQUIRE_CRED, not .*|text "the daemon has a credential for krb5 and none .*)$`,
		"the user's tickets are still in the cache, and are not for IAKERB what the daemon's are for krb5"),
	but(`LOCAL_FIRST local remote \| (acquire initiate|stores|impersonate): `, `^(asks none, not ACQUIRE_CRED.*|name bob@.*, not svc/.*|major 0, not 0x70000|mechs .*)$`,
		"an acceptor's handle is not put over the user's tickets, and LOCAL_FIRST finds them"),
	but(`LOCAL_FIRST (local )?remote \| acquire initiate: inquire_cred_by_mech - krb5`, `^(major 0, not 0x70000|asks ACQUIRE_CRED, not none)$`,
		"the default credential is inquired as it is acquired, from both"),
	but(`acquire accept: inquire_cred 6`, `^name svc/lab\.example\.test@EXAMPLE\.TEST, not svc/\S+@$`, "a name without a host is canonical here too"),
	but(`add: (add|inquire_cred) 3`, `.`, "a credential can be copied, which gss_add_cred does by exporting and importing it"),
	but(`export credentials: (export_cred 1|import_cred 2|inquire_cred 2)`, `^major 0, not `, "credentials can be exported and imported"),
	but(served+`export credentials: init 1 2`, `^asks INIT_SEC_CONTEXT, not ACQUIRE_CRED,INIT_SEC_CONTEXT$`, "what was exported can be used"),
	but(`REMOTE_ONLY.* \| password: `, `.`, "a password is used locally, always; Debian's gives back what is not a credential"),
	but(`impersonate: impersonate 2 1 1`, `^major 0x70000, not 0x1070000$`, "the daemon's refusal is passed on as it is"),
	but(served+`options: (init 2 1 2|accept 3 )`, `^major 0xd0000, not 0$`, "the last list of encryption types is in force, as with libkrb5, not the first"),
	but(served+`store: store 1 initiate`, `^(mechs .*, not none|usage 1, not 0)$`, "it says what was stored"),
	but(served+`store: store (1 accept|4)`, `^major 0x100000, not 0$`, "what accepts is not stored, as with libkrb5"),

	// Contexts.
	but(served, `^asks (ACQUIRE_CRED,)?(INIT|ACCEPT)_SEC_CONTEXT, not ACQUIRE_CRED,(ACQUIRE_CRED,)?(INIT|ACCEPT)_SEC_CONTEXT$`,
		"the daemon acquires the default credential by itself"),
	but(noDaemon, `^major 0xd0000, not 0x70000$`,
		"it says of a daemon that is not there that the call has failed, and not that there are no credentials"),
	but(`FIRST.* remote \| init: init 4 `, `^major 0xd0000, not 0x70000$`, "it says what the daemon, which has a credential, has failed with"),
	but(`FIRST.* remote \| init: init 10 1 1 krb5 0x3e 00`, `^major 0x90000, not 0x70000$`, "a leg that fails is not begun anew"),
	but(served+`init: init 7 `, `^major 0x1, not 0x[7d]0000$`, "Kerberos' old OID is the same mechanism to the daemon"),
	but(`FIRST remote \| init: init 6 `, `^text "\[mechanism-not-allowed\] .*", not "Credential cache is empty"$`,
		"nothing local takes the place of a handle, and the daemon's refusal is passed on"),
	but(`FIRST local remote \| init: init 6 `, `^major 0x1, not 0x70000$`, "the user's tickets are still in the cache"),
	but(served+`accept: accept 3 `, `^token true, not false$`, "the initiator is told that its token is refused"),
	but(served+`accept: (accept|display|inquire) 7`, `^(token true, not false|major 0, not 0x10[02]0000)$`, "DCE style contexts, which take three legs, are accepted"),
	but(`init: inquire [12]`, `^major 0, not 0x20000$`, "half open contexts are inquired"),
	but(served+`init: (time 1|wrap 1 1 early)`, `^major 0x80000, not 0x[cd]0000$`, "it says that a half open context is none yet"),
	but(`messages: (mic_iov|verify_iov) `, `^major 0, not 0x100000$`, "it has the functions for MICs of many buffers"),
	but(`messages: process_token 1`, `^major 0x90000, not 0x80000$`, "the token is looked at, as by libkrb5"),
	but(`messages: (export|inquire|time|wrap|delete) [12]`, `^major 0(x1080000)?, not (0x[12]?0?[8d]0000|crash: .*)$`, "contexts are exported and imported"),

	// Mechanisms.
	but(onlyThere+`mechanisms: indicate`, `^mechs `, "what the mechanisms are does not change by what the daemon says"),
	but(onlyThere+`mechanisms: (types|mech_attributes) `, `^major 0, not 0xd0000$`, "what a mechanism is needs no daemon"),
}

// fromDebiansWithC is what it does otherwise besides, with the C daemon.
var fromDebiansWithC = []difference{
	but(served+`(acquire |init: init 6)`, `^text "(Unspecified GSS failure|No credentials were supplied).*", not "(Unknown error|No Kerberos credentials available .*)"$`,
		"it says the major status where the daemon has no other text"),
	but(`FIRST remote \| init: init [67] `, `^text "No Kerberos credentials available .*", not "Credential cache is empty"$`,
		"nothing local takes the place of a handle, and the daemon's refusal is passed on"),
	but(served+`acquire accept: acquire [345] `, `^major 0(x70000)?, not 0xd0000$`, "an initiator's handle is not sent along to accept"),
	but(onlyThere+`init: init 7 `, `^major 0x70000, not 0xd0000$`, "the daemon's refusal is passed on as it is"),
}

// fromNone is what our plugin does otherwise than libkrb5 by itself.
var fromNone = []difference{
	but(`inquire_name (2|20)$`, `^mech { 2 16 840 1 113730 3 8 15 1 .*}`, "the mechglue says the OID under which it knows a name's mechanism"),
	but(`messages: peer: import 9`, `^major 0x10000, not 0$`, "the mechglue exports a context under that OID too"),
	but(`names: canonicalize 12 27`, `^major 0, not 0xd0000$`, "a name is looked at when it is needed"),
	but(`names: display 27`, `^major 0xd0000, not 0x1020000$`, "a name is looked at when it is needed"),
	but(`accept \d`, `^text "Keytab FILE:/nonexistent/keytab is nonexistent or empty", not "Key table entry not found"$`,
		"the default credential is acquired first, as the behaviors want it"),
	but(`inquire_cred_by_mech - krb5`, `^life 10h, not 0h$`, "the default credential is acquired, and not only looked up"),
}
