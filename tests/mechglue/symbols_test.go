package mechglue

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
)

// asked are what the mechglue looks up in a plugin, without gssi_, up to MIT krb5 1.22.
const asked = `accept_sec_context acquire_cred acquire_cred_from acquire_cred_impersonate_name acquire_cred_with_password
	add_cred add_cred_impersonate_name authorize_localname compare_name complete_auth_token
	context_time delete_name_attribute delete_sec_context display_name display_name_ext display_status duplicate_name
	export_cred export_name export_name_composite export_sec_context get_mic get_mic_iov get_mic_iov_length
	get_name_attribute import_cred import_cred_by_mech import_name import_name_by_mech import_sec_context
	import_sec_context_by_mech indicate_mechs init_sec_context inquire_attrs_for_mech inquire_context inquire_cred
	inquire_cred_by_mech inquire_cred_by_oid inquire_mech_for_saslname inquire_name inquire_names_for_mech
	inquire_saslname_for_mech inquire_sec_context_by_oid internal_release_oid localname map_name_to_any mech_invoke
	process_context_token pseudo_random release_any_name_mapping release_cred release_name set_cred_option
	set_name_attribute set_neg_mechs set_sec_context_option store_cred store_cred_into unwrap unwrap_aead unwrap_iov
	verify_mic verify_mic_iov wrap wrap_aead wrap_iov wrap_iov_length wrap_size_limit`

// without are those that the plugin does not have: what the mechglue makes of others itself (add_cred
// of acquire_cred; forward.c says what else) or never calls, and what only a negotiating mechanism has.
var without = strings.Fields(`add_cred add_cred_impersonate_name complete_auth_token display_name_ext indicate_mechs
	inquire_mech_for_saslname inquire_saslname_for_mech set_neg_mechs unwrap_aead wrap_aead`)

// TestSymbols: the plugin exports what the mechglue looks up and nothing else, since its names are
// every GSS-API process's.
func TestSymbols(t *testing.T) {
	nm, err := exec.LookPath("nm")
	if err != nil {
		lab.Lacking(t, "binutils", err)
	}
	if _, err := os.Stat("/usr/include/gssapi/gssapi_ext.h"); err != nil {
		lab.Lacking(t, "libkrb5-dev", err)
	}
	plugin := filepath.Join(t.TempDir(), "plugin.so")
	if err := lab.BuildPlugin(plugin); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(nm, "-D", "--defined-only", "-j", plugin).Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(string(out))
	slices.Sort(got)
	want := []string{"gss_mech_interposer"}
	for name := range strings.FieldsSeq(asked) {
		if !slices.Contains(without, name) {
			want = append(want, "gssi_"+name)
		}
	}
	slices.Sort(want)
	for _, s := range want {
		if !slices.Contains(got, s) {
			t.Errorf("it lacks %s", s)
		}
	}
	for _, s := range got {
		if !slices.Contains(want, s) {
			t.Errorf("it exports %s", s)
		}
	}
}
