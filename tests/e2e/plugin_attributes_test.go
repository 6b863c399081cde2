package e2e

import (
	"encoding/hex"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
)

// TestPluginAttributes: the name of a client has what the KDC says of it: how it proved who it is,
// and a PAC whose signatures the daemon has verified. With Debian's plugin it has nothing.
func TestPluginAttributes(t *testing.T) {
	r := realm(t)
	program, err := r.BuildTool("calls")
	check(t, err)
	const indicator = "two-factors"
	conf, err := r.IndicatingKDC(indicator)
	check(t, err)
	env, err := r.KinitEnv([]string{"KRB5_CONFIG=" + conf}, "alice", "alice")
	check(t, err)
	client := tool(t, lab.Nobody, env...)
	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{})
		accept := func(t *testing.T, p lab.Plugin) func(line string) result {
			t.Helper()
			c := startCalls(t, r.Command(lab.Nobody, d.PluginEnvOf(p), program))
			t.Cleanup(func() { check(t, c.end()) })
			_, token, err := client.Init(service, lab.Usual|lab.Mutual, nil)
			check(t, err)
			call := func(line string) result {
				t.Helper()
				res, err := c.call(line)
				check(t, err)
				return res
			}
			if res := call("accept 1 - " + hex.EncodeToString(token) + " 1 -"); res.major != "0" {
				t.Fatal(res)
			}
			return call
		}
		t.Run("ours", func(t *testing.T) {
			call := accept(t, lab.Ours)
			all := call("inquire_name 1").fields["attributes"]
			for _, name := range []string{"auth-indicators", "urn:mspac:", "urn:mspac:client-info"} {
				if !strings.Contains(","+all+",", ","+name+",") {
					t.Errorf("no %s among the attributes %s", name, all)
				}
			}
			res := call("get_attribute 1 auth-indicators")
			value, err := hex.DecodeString(res.fields["value"])
			check(t, err)
			if string(value) != indicator || res.fields["authenticated"] != "1" || res.fields["complete"] != "1" || res.fields["more"] != "0" {
				t.Errorf("auth-indicators: %q of %v", value, res)
			}
			for _, name := range []string{"urn:mspac:", "urn:mspac:client-info"} {
				if res := call("get_attribute 1 " + name); res.fields["value"] == "" || res.fields["authenticated"] != "1" {
					t.Errorf("%s: %v", name, res)
				}
			}
			// A copy has them too, and so has a name that was exported with them.
			call("duplicate 1 2")
			composite := call("export_composite 1").fields["exported"]
			call("import_name 3 composite " + composite)
			for _, copied := range []string{"2", "3"} {
				if again := call("get_attribute " + copied + " auth-indicators"); again.fields["value"] != res.fields["value"] {
					t.Errorf("of the copy %s: %v", copied, again)
				}
			}
			// What is exported without them has none.
			call("import_name 4 export " + call("export_name 1").fields["exported"])
			if res := call("get_attribute 4 auth-indicators"); res.major == "0" {
				t.Errorf("a name that was exported without attributes has one: %v", res)
			}
		})
		t.Run("debian", func(t *testing.T) {
			call := accept(t, lab.Debians)
			for _, name := range []string{"auth-indicators", "urn:mspac:"} {
				if res := call("get_attribute 1 " + name); res.major == "0" {
					t.Errorf("it has %s: the test with our plugin shows nothing", name)
				}
			}
		})
	})
}
