package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"gssproxyd/tests/lab"
)

// notOurLeaks are libgssapi's, which keeps a mechanism that it has loaded and forgets where, and the
// principal that it has not found in a keytab.
const notOurLeaks = `
leak:krb5int_open_plugin
leak:krb5_build_principal
`

// sanitized builds our plugin and the two programs that call it with a sanitizer, and returns their
// paths and the environment that loads the plugin and has all reports come out.
func sanitized(t *testing.T, sanitizer string) (calls, threads string, env []string) {
	t.Helper()
	r := realm(t)
	flag := "-fsanitize=" + sanitizer
	calls, err := r.BuildTool("calls", flag, "-fno-sanitize-recover=all")
	check(t, err)
	threads, err = r.BuildTool("threads", flag, "-fno-sanitize-recover=all")
	check(t, err)
	plugin := r.Path("sanitized.so")
	check(t, lab.BuildPlugin(plugin, "MECH_CFLAGS="+flag+" -fno-sanitize-recover=all"))
	conf := r.Path("sanitized.conf")
	line := fmt.Sprintf("gssproxy_v1 2.16.840.1.113730.3.8.15.1 %s <interposer>\n", plugin)
	check(t, os.WriteFile(conf, []byte(line), 0o644))
	suppressions := r.Path("lsan.supp")
	check(t, os.WriteFile(suppressions, []byte(notOurLeaks), 0o644))
	return calls, threads, []string{
		"GSS_MECH_CONFIG=" + conf, "GSS_USE_PROXY=yes", "ASAN_OPTIONS=fast_unwind_on_malloc=0",
		"LSAN_OPTIONS=print_suppressions=0:suppressions=" + suppressions,
	}
}

// share runs the program of threads that share what they have.
func share(t *testing.T, program string, env []string, command string, rounds int) {
	t.Helper()
	d := alicesDaemon(t)
	env = append(d.PluginEnvOf(lab.Ours), env...)
	out, err := realm(t).Run(lab.Nobody, env, program, command, "16", fmt.Sprint(rounds), service)
	if err != nil || !regexp.MustCompile(`^calls \d+\n$`).MatchString(out) {
		t.Errorf("%v\n%s", err, tail(out, 16<<10))
	}
}

// TestPluginShared: threads with the same credentials, names and contexts, and children in between.
// In children of a program with threads ASan's allocator hangs, so this is without a sanitizer.
func TestPluginShared(t *testing.T) {
	needOurs(t)
	share(t, filepath.Join(realm(t).Dir, "threads"), nil, "forked", 10)
}

// TestPluginAddressSanitizer: no bad access, undefined behavior or leak in any call there is, nor by
// threads.
func TestPluginAddressSanitizer(t *testing.T) {
	needOurs(t)
	calls, threads, env := sanitized(t, "address,undefined")
	share(t, threads, env, "shared", 3)
	s := newStage(t, "ours", calls)
	for _, w := range []world{{"REMOTE_ONLY", false, true}, {"LOCAL_FIRST", true, false}} {
		for _, sc := range scripts {
			lines, results := s.play(t, env, w, sc)
			if last := results[len(results)-1]; last.major[0] == 'c' {
				t.Errorf("%s | %s: %s: %s", w, sc.name, lines[len(lines)-1], last.major)
			}
		}
	}
}

// TestPluginThreadSanitizer: no race in the plugin.
func TestPluginThreadSanitizer(t *testing.T) {
	needOurs(t)
	_, threads, env := sanitized(t, "thread")
	share(t, threads, env, "shared", 3)
}
