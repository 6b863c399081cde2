package e2e

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gssproxyd/tests/lab"
)

// caller is a run of the lab's program that makes one GSS call a line.
type caller struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err strings.Builder
}

func startCalls(t *testing.T, cmd *exec.Cmd) *caller {
	t.Helper()
	c := &caller{cmd: cmd}
	var err error
	c.in, err = cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	c.out = bufio.NewReaderSize(out, 1<<16)
	cmd.Stderr = &c.err
	check(t, cmd.Start())
	return c
}

// call makes one call. The error is how the program has ended.
func (c *caller) call(line string) (result, error) {
	timer := time.AfterFunc(lab.Patience, func() { c.cmd.Process.Kill() })
	defer timer.Stop()
	if _, err := io.WriteString(c.in, line+"\n"); err != nil {
		return result{}, c.end()
	}
	answer, err := c.out.ReadString('\n')
	if err != nil {
		return result{}, c.end()
	}
	parts := strings.Split(strings.TrimSuffix(answer, "\n"), "\t")
	r := result{major: parts[0], fields: map[string]string{}}
	if len(parts) > 1 {
		r.text = strings.TrimSpace(parts[1])
	}
	for _, f := range parts[min(2, len(parts)):] {
		name, value, _ := strings.Cut(f, "=")
		r.fields[name] = value
	}
	return r, nil
}

// end ends the program, and says how that went if it was not well.
func (c *caller) end() error {
	c.in.Close()
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("%w %s", err, tail(c.err.String(), 16<<10))
	}
	return nil
}

// result is what a call gave, and what the daemon was asked for it.
type result struct {
	major, text string
	fields      map[string]string
	asked       []string
}

// secrets are fields that are never the same twice: what counts is that there is something, and what
// the other end makes of it.
var secrets = []string{"token", "bytes"}

// differ says in what two results differ. Texts count where both have one: ours may say more. What
// could not be done because an earlier call had failed is not compared: that failure was.
func differ(ours, others result) (list []string) {
	note := func(what, a, b string) {
		if a != b {
			list = append(list, fmt.Sprintf("%s %s, not %s", what, cmp.Or(a, "none"), cmp.Or(b, "none")))
		}
	}
	if ours.major == notMade || others.major == notMade {
		return nil
	}
	note("major", ours.major, others.major)
	if ours.major == others.major {
		if ours.text != "" && others.text != "" && !strings.Contains(ours.text, others.text) {
			note("text", strconv.Quote(ours.text), strconv.Quote(others.text))
		}
		names := slices.Collect(maps.Keys(ours.fields))
		for name := range others.fields {
			if _, there := ours.fields[name]; !there {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			a, b := ours.fields[name], others.fields[name]
			switch {
			case slices.Contains(secrets, name):
				a, b = strconv.FormatBool(a != ""), strconv.FormatBool(b != "")
			case strings.HasPrefix(name, "life"):
				x, _ := strconv.ParseUint(a, 10, 32)
				y, _ := strconv.ParseUint(b, 10, 32)
				if max(x, y)-min(x, y) <= 60 {
					continue
				}
				a, b = round(x), round(y)
			}
			note(name, a, b)
		}
	}
	note("asks", strings.Join(ours.asked, ","), strings.Join(others.asked, ","))
	return list
}

// notMade is in place of the major status of a call for which something is missing.
const notMade = "not made"

// round says a lifetime so that it is the same in each run.
func round(life uint64) string {
	if life == 1<<32-1 {
		return "indefinite"
	}
	return fmt.Sprintf("%dh", (life+1800)/3600)
}

// A script is calls that belong together, in a process of their own. A line is one of the program of
// calls. "peer:" before it has the program without a plugin make it: its result is compared where it
// is given something of the other end. "> v" behind it keeps what the call gave as bytes for $v, and
// a line that needs what is not there is not made. $dir is a directory of the run's own, $ccache has
// bob's tickets, and $keytab and $client have keys to accept and to initiate with.
type script struct {
	name  string
	lines string
}

var scripts = []script{
	{"names", `
import_name 1 host svc@lab.example.test
import_name 2 user alice
import_name 3 principal svc/lab.example.test@EXAMPLE.TEST
import_name 4 uid 0
import_name 5 uidtext 0
import_name 6 none alice@EXAMPLE.TEST
import_name 7 anonymous -
import_name 8 krb5principal alice@EXAMPLE.TEST
import_name 9 unknown alice
import_name 10 export 0401000b06092a864886f712010202
import_name 11 user -
import_name 12 principal alice@ELSEWHERE@EXAMPLE.TEST
display 1
display 2
display 5
canonicalize 1 20 krb5
canonicalize 2 21 krb5
canonicalize 3 22 krb5
canonicalize 4 23 krb5
canonicalize 6 24 krb5
canonicalize 7 25 krb5
canonicalize 8 26 krb5
canonicalize 12 27 krb5
display 27
canonicalize 1 28 iakerb
canonicalize 1 29 spnego
canonicalize 1 30 unknown
display 20
display 21
display 22
display 23
display 24
display 25
display 26
display 28
display 29
display_ext 20 user
export_name 20 > host
export_name 21
export_name 22
export_name 24
export_name 28
export_name 29
export_name 1
export_composite 24 > composite
import_name 13 export $host
display 13
inquire_name 13
canonicalize 13 14 krb5
display 14
export_name 14
import_name 15 composite $composite
display 15
compare 1 1
compare 20 22
compare 20 21
compare 1 20
compare 1 2
compare 2 21
duplicate 1 16
duplicate 20 17
display 16
display 17
compare 17 20
export_name 17
inquire_name 1
inquire_name 20
get_attribute 24 urn:mspac:
get_attribute 20 nothing
set_attribute 24 localname root
delete_attribute 24 localname
map_name 24 nothing
localname 2 krb5
localname 21 -
localname 24 krb5
localname 22 krb5
authorize 24 alice
authorize 24 bob
authorize 21 alice
`},
	{"acquire initiate", `
import_name 1 user alice
import_name 2 user bob
import_name 3 host svc@lab.example.test
acquire 1 - krb5 initiate -
inquire_cred 1
inquire_cred_by_mech 1 krb5
inquire_cred_by_oid 1
acquire 2 1 krb5 initiate -
inquire_cred 2
acquire 3 2 krb5 initiate -
inquire_cred 3
acquire 4 3 krb5 initiate -
acquire 5 - - initiate -
inquire_cred 5
acquire 6 - empty initiate -
acquire 7 - iakerb initiate -
acquire 8 - krb5+iakerb initiate -
acquire 9 - unknown initiate -
acquire 10 - spnego initiate -
inquire_cred 10
inquire_cred -
inquire_cred_by_mech - krb5
inquire_cred_by_mech 1 iakerb
release_cred 1
`},
	{"acquire accept", `
import_name 1 host svc@lab.example.test
import_name 2 host HTTP@lab.example.test
import_name 3 host none@lab.example.test
import_name 4 host svc
acquire 1 - krb5 accept -
inquire_cred 1
inquire_cred_by_mech 1 krb5
acquire 2 1 krb5 accept -
inquire_cred 2
inquire_cred_by_mech 2 krb5
acquire 3 2 krb5 accept -
acquire 4 3 krb5 accept -
acquire 5 4 krb5 accept -
acquire 6 - - accept -
inquire_cred 6
acquire 7 - spnego accept -
acquire 8 - krb5 both -
inquire_cred 8
acquire 9 1 krb5 both -
inquire_cred 9
`},
	{"stores", `
acquire 1 - krb5 accept keytab=$keytab
inquire_cred 1
acquire 2 - krb5 accept keytab=/nonexistent/keytab
acquire 3 - krb5 initiate ccache=$ccache
inquire_cred 3
acquire 4 - krb5 initiate ccache=FILE:$dir/none
acquire 5 - krb5 initiate client_keytab=$client,ccache=FILE:$dir/new
inquire_cred 5
acquire 6 - krb5 initiate client_keytab=/nonexistent/keytab,ccache=MEMORY:none
acquire 7 - krb5 initiate unknown=1
`},
	{"add", `
import_name 1 host svc@lab.example.test
acquire 1 - krb5 accept -
add 2 - 1 krb5 accept
inquire_cred 2
add 3 1 - iakerb accept
inquire_cred 3
add 4 1 1 krb5 accept
add 5 - - krb5 initiate
inquire_cred 5
add 6 - - unknown initiate
`},
	{"password", `
import_name 1 user alice
with_password 1 1 alice
inquire_cred 1
import_name 2 host svc@lab.example.test
init 1 1 2 krb5 0x32 - > t
peer: accept 1 - $t 1 -
with_password 2 1 wrong
`},
	{"impersonate", `
import_name 1 user bob
acquire 1 - krb5 initiate -
impersonate 2 1 1
inquire_cred 2
inquire_cred_by_oid 2
impersonate 3 - 1
inquire_cred 3
`},
	{"export credentials", `
acquire 1 - krb5 initiate -
export_cred 1 > c
import_cred 2 $c
inquire_cred 2
import_name 2 host svc@lab.example.test
init 1 2 2 krb5 0x32 - > t
peer: accept 1 - $t 1 -
import_cred 3 0000000b06092a864886f71201020200000000
import_cred 4 00
`},
	{"options", `
acquire 1 - krb5 initiate -
enctypes 1 18
no_ci_flags 1
unknown_option 1
import_name 2 host svc@lab.example.test
init 1 1 2 krb5 0 - > t
inquire 1
enctypes 1 23
init 2 1 2 krb5 0 -
acquire 2 - krb5 accept -
enctypes 2 18
enctypes 2 20
peer: import_name 1 host svc@lab.example.test
peer: init 1 - 1 krb5 0x32 - > q
accept 3 2 $q - -
`},
	{"store", `
acquire 1 - krb5 initiate -
store 1 initiate 1 0 ccache=FILE:$dir/stored
acquire 2 - krb5 initiate ccache=FILE:$dir/stored
inquire_cred 2
store 1 initiate 0 0 ccache=FILE:$dir/stored
store 1 accept 1 0 ccache=FILE:$dir/other
store 1 initiate 1 1 -
acquire 3 - krb5 initiate -
inquire_cred 3
acquire 4 - krb5 accept -
store 4 initiate 1 0 ccache=FILE:$dir/accepts
store 4 accept 1 0 ccache=FILE:$dir/accepts
`},
	{"accept", `
peer: import_name 1 host svc@lab.example.test
peer: init 1 - 1 krb5 0x3f - > t
acquire 1 - krb5 accept -
accept 1 1 $t 2 3 > r
peer: init 1 - 1 krb5 0x3f $r
inquire 1
time 1
display 2
export_name 2
inquire_name 2
localname 2 krb5
authorize 2 alice
inquire_cred 3
import_name 5 host HTTP@lab.example.test
init 5 3 5 krb5 0x32 - > d
peer: accept 5 - $d 5 -
peer: init 2 - 1 krb5 0x32 - > t
accept 2 - $t 4 -
inquire 2
accept 3 - $t - -
accept 4 1 00 - -
accept 8 - 6082 - -
peer: init 6 - 1 spnego 0x3e - > t
accept 6 - $t 6 - > r
peer: init 6 - 1 spnego 0x3e $r
display 6
inquire 6
peer: delete 1
peer: delete 6
peer: init 1 - 1 krb5 0x103a - > t
accept 7 - $t 7 - > r
peer: init 1 - 1 krb5 0x103a $r > t
accept 7 - $t 7 - > r
display 7
inquire 7
`},
	{"init", `
import_name 1 host svc@lab.example.test
import_name 2 host none@lab.example.test
init 1 - 1 krb5 0x3e - > t
inquire 1
time 1
wrap 1 1 early
peer: accept 1 - $t 1 - > r
init 1 - 1 krb5 0x3e $r
peer: inquire 1
inquire 1
time 1
init 2 - 1 krb5 0x32 - > t
peer: accept 2 - $t 2 -
inquire 2
acquire 1 - krb5 initiate -
init 3 1 1 krb5 0x3e - > t
peer: accept 3 - $t 3 - > r
init 3 1 1 krb5 0x3e $r
inquire 3
init 4 1 2 krb5 0x32 -
init 5 - 1 spnego 0x3e - > t
peer: accept 5 - $t 5 - > r
init 5 - 1 spnego 0x3e $r
inquire 5
init 6 - 1 iakerb 0x32 -
init 7 - 1 old 0x32 - > t
peer: accept 7 - $t 7 -
init 8 - 1 unknown 0x32 -
init 9 - 1 - 0x32 -
init 10 1 1 krb5 0x3e - > t
init 10 1 1 krb5 0x3e 00
delete 10
import_name 3 user alice
init 11 1 3 krb5 0x32 -
`},
	{"messages", `
import_name 1 host svc@lab.example.test
init 1 - 1 krb5 0x3e - > t
peer: accept 1 - $t 1 - > r
init 1 - 1 krb5 0x3e $r
wrap 1 1 hello > m
peer: unwrap 1 $m
wrap 1 0 hello > m
peer: unwrap 1 $m
peer: wrap 1 1 back > m
unwrap 1 $m
unwrap 1 $m
unwrap 1 00
mic 1 hello > m
peer: verify 1 hello $m
peer: mic 1 back > m
verify 1 back $m
verify 1 other $m
limit 1 1 1000
limit 1 0 1000
prf 1 seed
wrap_iov 1 hello extra > m
peer: unwrap_iov 1 $m extra
peer: wrap_iov 1 back extra > m
unwrap_iov 1 $m extra
wrap_iov_length 1 1000
wrap_aead 1 hello extra > m
peer: unwrap_aead 1 $m extra
peer: wrap_aead 1 back extra > m
unwrap_aead 1 $m extra
mic_iov 1 hello > m
peer: verify_iov 1 hello $m
peer: mic_iov 1 back > m
verify_iov 1 back $m
session_key 1
context_option 1
process_token 1 00
export 1 > x
peer: import 9 $x
inquire 1
import 2 $x
inquire 2
time 2
wrap 2 1 hello > m
peer: unwrap 1 $m
peer: export 1 > x
import 3 $x
inquire 3
delete 3
delete 2
import 4 00
import 5 0000000b06092a864886f71201020200
`},
	{"accepted messages", `
peer: import_name 1 host svc@lab.example.test
peer: init 1 - 1 krb5 0x3e - > t
acquire 1 - krb5 accept -
accept 1 1 $t - - > r
peer: init 1 - 1 krb5 0x3e $r
wrap 1 1 hello > m
peer: unwrap 1 $m
peer: wrap 1 1 back > m
unwrap 1 $m
mic 1 hello > m
peer: verify 1 hello $m
session_key 1
export 1 > x
import 2 $x
inquire 2
time 2
wrap 2 1 hello > m
peer: unwrap 1 $m
`},
	{"mechanisms", `
indicate
types krb5
types spnego
types iakerb
types unknown
mech_attributes krb5
mech_attributes iakerb
mech_attributes unknown
saslname krb5
saslname spnego
mech_for_sasl GS2-KRB5
mech_for_sasl nothing
invoke krb5
invoke unknown
`},
}

// world is what a program has: a behavior, tickets and a keytab of its own (bob's), and a daemon that
// serves it (as alice) or refuses.
type world struct {
	behavior      string
	local, remote bool
}

func (w world) String() string {
	s := w.behavior
	if w.local {
		s += " local"
	}
	if w.remote {
		s += " remote"
	}
	return s
}

// stage is where the scripts are played.
type stage struct {
	t                 *testing.T
	program           string
	bobs              []byte // tickets
	keytab, client    string // that programs can read
	serving, refusing *lab.Daemon
	peer              func() *exec.Cmd
}

func newStage(t *testing.T, kind, program string) *stage {
	t.Helper()
	r := realm(t)
	made(t, r.AddPrincipal("bob", "bob"))
	env, err := r.Kinit("bob", "bob")
	check(t, err)
	s := &stage{t: t, program: program}
	s.bobs, err = os.ReadFile(strings.TrimPrefix(env[0], "KRB5CCNAME=FILE:"))
	check(t, err)
	s.keytab, err = r.Keytab("readable.keytab", "svc/"+lab.Host, "HTTP/"+lab.Host)
	check(t, err)
	s.client, err = r.Keytab("bob.keytab", "bob")
	check(t, err)
	check(t, os.Chmod(s.keytab, 0o644))
	check(t, os.Chmod(s.client, 0o644))
	alices, err := r.Keytab("alice.keytab", "alice")
	check(t, err)
	keys := keytab(t)
	cred := []string{"cred_store = keytab:" + keys, "cred_store = client_keytab:" + alices}
	s.serving = daemon(t, kind, lab.Options{Keytab: keys, Config: config(svc{"both", lab.Nobody.UID, cred}, svc{"lab", 0, nil})})
	s.refusing = daemon(t, kind, lab.Options{Keytab: keys, Config: config(svc{"lab", 0, []string{"cred_store = keytab:" + keys}})})
	env, err = r.Kinit("alice", "alice", "-f")
	check(t, err)
	s.peer = func() *exec.Cmd {
		return r.Command(lab.Root, append(env, "KRB5_KTNAME="+keys, "KRB5RCACHENAME=none:"), program)
	}
	return s
}

// plugin has a program load a plugin.
func (s *stage) plugin(p lab.Plugin) []string {
	return append(realm(s.t).Load(p), "GSS_USE_PROXY=yes")
}

var executing = regexp.MustCompile(`executing .*?(?:procedure=|GSSX_)(\w+)`)

// callID is which call a text is about.
var callID = regexp.MustCompile(` \(call \w+-\d+\)`)

// stamp is a time in a text.
var stamp = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|\d+s$`)

// remembered is in a text while the daemon has an answer of the KDC's in memory, which ends between
// one plugin's turn and the other's.
var remembered = regexp.MustCompile(`; the KDC is asked again in \d+s`)

// variable is one of a script's.
var variable = regexp.MustCompile(`\$\w+`)

// play plays a script and returns what each line gave that the peer has not made. A program that
// crashes leaves the rest of the script out.
func (s *stage) play(t *testing.T, plugin []string, w world, sc script) (lines []string, results []result) {
	t.Helper()
	dir := nobodyDir(t)
	own := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		check(t, os.WriteFile(path, b, 0o600))
		check(t, os.Chown(path, int(lab.Nobody.UID), int(lab.Nobody.GID)))
		return path
	}
	vars := map[string]string{"$dir": dir, "$client": s.client, "$keytab": s.keytab, "$ccache": "FILE:" + own("explicit", s.bobs)}
	cache, keys := filepath.Join(dir, "cc"), "/nonexistent/keytab"
	if w.local {
		own("cc", s.bobs)
		keys = s.keytab
	}
	d := s.refusing
	if w.remote {
		d = s.serving
	}
	log, err := os.Open(d.Log)
	check(t, err)
	defer log.Close()
	_, err = log.Seek(0, io.SeekEnd)
	check(t, err)
	env := append(plugin, "GSSPROXY_SOCKET="+d.Socket, "GSSPROXY_BEHAVIOR="+w.behavior,
		"KRB5CCNAME=FILE:"+cache, "KRB5_KTNAME="+keys, "KRB5RCACHENAME=none:")
	c := startCalls(t, realm(t).Command(lab.Nobody, env, s.program))
	peer := startCalls(t, s.peer())
	defer func() { check(t, peer.end()) }()
	for line := range strings.Lines(strings.TrimSpace(sc.lines)) {
		line = strings.TrimSuffix(line, "\n")
		call, keep, keeps := strings.Cut(line, " > ")
		missing := false
		call = variable.ReplaceAllStringFunc(call, func(v string) string {
			missing = missing || vars[v] == ""
			return vars[v]
		})
		if keeps {
			delete(vars, "$"+keep)
		}
		call, peers := strings.CutPrefix(call, "peer: ")
		if missing {
			lines, results = append(lines, line), append(results, result{major: notMade})
			continue
		}
		var res result
		if peers {
			res, err = peer.call(call)
			check(t, err)
		} else {
			if res, err = c.call(call); err != nil {
				first, _, _ := strings.Cut(err.Error(), "\n")
				return append(lines, line), append(results, result{major: "crash: " + first})
			}
			b, err := io.ReadAll(log)
			check(t, err)
			for _, m := range executing.FindAllSubmatch(b, -1) {
				if name := string(m[1]); name != "INDICATE_MECHS" { // Debian's asks it once, ours never: nobody sees that
					res.asked = append(res.asked, name)
				}
			}
		}
		// What the peer makes of what the plugin's end has made is that end's result.
		if !peers || strings.Contains(line, "$") {
			res.text = remembered.ReplaceAllString(strings.ReplaceAll(res.text, dir, "$dir"), "")
			res.text = stamp.ReplaceAllString(callID.ReplaceAllString(res.text, ""), "TIME")
			lines, results = append(lines, line), append(results, res)
		}
		for _, f := range []string{"token", "exported"} {
			if v := res.fields[f]; keeps && v != "" {
				vars["$"+keep] = v
			}
		}
	}
	if err := c.end(); err != nil {
		lines, results = append(lines, "end"), append(results, result{major: "crash: " + err.Error()})
	}
	return lines, results
}

// plays plays a script in both ways, in the worlds there are, and returns in what the results differ:
// "WORLD | SCRIPT: LINE | WHAT".
func (s *stage) plays(t *testing.T, worlds []world, sc script, one, other func(w world) ([]string, []result)) (list []string) {
	t.Helper()
	for _, w := range worlds {
		lines, ours := one(w)
		otherLines, others := other(w)
		for i, line := range lines {
			if strings.HasPrefix(ours[i].major, "crash") {
				t.Errorf("%s | %s: %s: %s", w, sc.name, line, ours[i].major)
			}
			// Who has crashed has shown enough.
			if i == len(others) || strings.HasPrefix(ours[i].major, "crash") {
				break
			}
			if line != otherLines[i] {
				t.Fatalf("%s is compared with %s", line, otherLines[i])
			}
			for _, what := range differ(ours[i], others[i]) {
				list = append(list, fmt.Sprintf("%s | %s: %s | %s", w, sc.name, line, what))
			}
		}
	}
	return list
}

// worlds are all there are.
func worlds() (list []world) {
	list = []world{{"LOCAL_ONLY", false, true}, {"LOCAL_ONLY", true, true}} // the daemon makes no difference
	for _, behavior := range []string{"LOCAL_FIRST", "REMOTE_FIRST", "REMOTE_ONLY"} {
		for _, local := range []bool{false, true} {
			for _, remote := range []bool{false, true} {
				list = append(list, world{behavior, local, remote})
			}
		}
	}
	return list
}

// is reports whether a difference, as plays returns it, is d.
func (d difference) is(what string) bool {
	at := strings.LastIndex(what, " | ")
	return d.where.MatchString(what[:at]) && d.what.MatchString(what[at+3:])
}

func allowed(list []difference, what string) bool {
	return slices.ContainsFunc(list, func(d difference) bool { return d.is(what) })
}

// judge fails the test for each difference that is not allowed, and for each that is allowed and not
// there any more.
func judge(t *testing.T, list []difference, found []string) {
	t.Helper()
	for _, what := range found {
		if !allowed(list, what) {
			t.Error(what)
		}
	}
	for _, d := range list {
		if !slices.ContainsFunc(found, d.is) {
			t.Errorf("nothing differs any more as %q at %q, which is allowed because %s", d.what, d.where, d.why)
		}
	}
}

// throughBoth plays the scripts through our plugin and Debian's.
func throughBoth(t *testing.T, kind string) (list []string) {
	t.Helper()
	needOurs(t)
	program, err := realm(t).BuildTool("calls")
	check(t, err)
	s := newStage(t, kind, program)
	for _, sc := range scripts {
		list = append(list, s.plays(t, worlds(), sc,
			func(w world) ([]string, []result) { return s.play(t, s.plugin(lab.Ours), w, sc) },
			func(w world) ([]string, []result) { return s.play(t, s.plugin(lab.Debians), w, sc) })...)
	}
	return list
}

// TestPluginDifferential: the same calls through our plugin and Debian's.
func TestPluginDifferential(t *testing.T) {
	judge(t, fromDebians, throughBoth(t, "ours"))
}

// TestNightlyPluginDifferentialC: and with the C daemon, which writes to its log what it is asked when
// it is done with it, so that this is not compared.
func TestNightlyPluginDifferentialC(t *testing.T) {
	lab.Nightly(t)
	var list []string
	for _, d := range throughBoth(t, "C") {
		if !strings.Contains(d, " | asks ") && !allowed(fromDebians, d) {
			list = append(list, d)
		}
	}
	judge(t, fromDebiansWithC, list)
}

// TestPluginLocal: the same calls through our plugin, which is told to leave all to libkrb5, and
// without one.
func TestPluginLocal(t *testing.T) {
	needOurs(t)
	program, err := realm(t).BuildTool("calls")
	check(t, err)
	s := newStage(t, "ours", program)
	var list []string
	for _, sc := range scripts {
		list = append(list, s.plays(t, []world{{"LOCAL_ONLY", false, false}, {"LOCAL_ONLY", true, false}}, sc,
			func(w world) ([]string, []result) { return s.play(t, s.plugin(lab.Ours), w, sc) },
			func(w world) ([]string, []result) { return s.play(t, nil, w, sc) })...)
	}
	judge(t, fromNone, list)
}

// TestPluginTextsStay: a program that fails again and again is told the same each time.
func TestPluginTextsStay(t *testing.T) {
	needOurs(t)
	program, err := realm(t).BuildTool("calls")
	check(t, err)
	s := newStage(t, "ours", program)
	for _, w := range worlds() {
		_, results := s.play(t, s.plugin(lab.Ours), w, script{"texts", strings.Repeat("acquire 1 - krb5 accept keytab=/nonexistent/keytab\n", 5)})
		for _, r := range results[1:] {
			if r.text != results[0].text {
				t.Errorf("%s: first %q, then %q", w, results[0].text, r.text)
			}
		}
	}
}
