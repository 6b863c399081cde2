package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"gssproxyd/tests/lab"
)

// TestTranscripts: an administrator is told that it does not work. In each script the user sees an
// error, one command says the cause and what to do, that is done, and it works. $DIR is the daemon's
// directory, $PRINCIPAL the service's, whose keytab is to be $DIR/web.keytab. Beside the usual
// commands there are:
//
//	kadmin QUERY               what kadmin.local says at the KDC
//	configure FILE             gssproxy.conf has the text of a file, with its variables
//	daemon                     gssproxyd is started
//	program UID [VAR=VALUE]    MIT's gss-server accepts, as that user and with the plugin, what alice's gss-client sends
//	gssproxyd ARGUMENT...      the command, as root
//	shift-clock DURATION       the KDC's and alice's clocks are that far from this host's
func TestTranscripts(t *testing.T) {
	needOurs(t)
	r := realm(t)
	n := 0
	testscript.RunT(inTurn{t}, testscript.Params{
		Dir: "testdata/transcripts",
		Setup: func(e *testscript.Env) error {
			n++
			dir := r.Path("transcript")
			s := &transcript{realm: r, dir: dir, service: fmt.Sprintf("web%d@%s", n, lab.Host), krb5: filepath.Join(dir, "krb5.conf")}
			e.Values[transcriptKey{}] = s
			e.Setenv("DIR", dir)
			e.Setenv("PRINCIPAL", strings.Replace(s.service, "@", "/", 1))
			return os.Mkdir(dir, 0o755)
		},
		Condition: func(c string) (bool, error) {
			if c != "unit" {
				return false, errors.New("unknown condition")
			}
			return lab.UnderUnit(), nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"kadmin":      command((*transcript).kadmin),
			"configure":   command((*transcript).configure),
			"daemon":      command((*transcript).start),
			"program":     command((*transcript).program),
			"gssproxyd":   command((*transcript).gssproxyd),
			"shift-clock": command((*transcript).shiftClock),
		},
	})
}

// inTurn runs scripts one after the other: they have one KDC's database.
type inTurn struct{ *testing.T }

func (inTurn) Parallel()     {}
func (inTurn) Verbose() bool { return testing.Verbose() }

func (t inTurn) Run(name string, do func(testscript.T)) {
	t.T.Run(name, func(t *testing.T) { do(inTurn{t}) })
}

type transcriptKey struct{}

// transcript is what the commands of one script share.
type transcript struct {
	realm   *lab.Realm
	dir     string // the daemon's
	service string // what clients ask for
	krb5    string // krb5.conf of the host
	daemon  *lab.Daemon
	kdc     *lab.Process // with another clock
	clock   []string     // of alice
}

// command is one of a script's: what it returns is printed, and whether it fails is as the script
// says.
func command(do func(s *transcript, ts *testscript.TestScript, args []string) (string, error)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		out, err := do(ts.Value(transcriptKey{}).(*transcript), ts, args)
		fmt.Fprint(ts.Stdout(), out)
		if (err != nil) != neg {
			ts.Fatalf("%v: error %v", args, err)
		}
	}
}

func (s *transcript) kadmin(_ *testscript.TestScript, args []string) (string, error) {
	return "", s.realm.Kadmin(args...)
}

// probed is a service for root, by which the lab sees that the daemon answers.
const probed = `
[service/probed]
  mechs = krb5
  euid = 0
  cred_store = ccache:MEMORY:probed
  cred_usage = initiate
`

// text is a file of the script, with its variables.
func text(ts *testscript.TestScript, file string) string {
	return os.Expand(ts.ReadFile(file), ts.Getenv)
}

func (s *transcript) configure(ts *testscript.TestScript, args []string) (string, error) {
	return "", os.WriteFile(filepath.Join(s.dir, "gssproxy.conf"), []byte(text(ts, args[0])+probed), 0o600)
}

func (s *transcript) start(ts *testscript.TestScript, _ []string) (_ string, err error) {
	if s.kdc == nil {
		if _, err := s.shiftClock(ts, []string{"0s"}); err != nil {
			return "", err
		}
	}
	config, err := os.ReadFile(filepath.Join(s.dir, "gssproxy.conf"))
	if err != nil {
		return "", err
	}
	o := lab.Options{Config: string(config), Dir: s.dir, Krb5Conf: s.krb5}
	if strings.Contains(o.Config, "run_as_user = nobody") {
		o.Becomes = lab.Nobody
	}
	if s.daemon, err = s.realm.Ours(o); err != nil {
		return "", err
	}
	ts.Defer(func() { ts.Check(s.daemon.Stop()) })
	return "", nil
}

func (s *transcript) program(_ *testscript.TestScript, args []string) (string, error) {
	uid, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil {
		return "", err
	}
	server, err := s.realm.GSSServer(lab.User{UID: uint32(uid), GID: uint32(uid)}, append(s.daemon.PluginEnvOf(lab.Ours), args[1:]...), s.service)
	if err != nil {
		return err.Error() + "\n", err
	}
	defer server.Kill()
	env, err := s.realm.KinitEnv(s.clock, "alice", "alice")
	if err != nil {
		return "", err
	}
	out, err := s.realm.GSSClient(lab.Nobody, env, server, s.service, "hello")
	if err == nil && !strings.Contains(out, "Signature verified.") {
		err = errors.New("no signature was verified")
	}
	said, bad := server.Wait()
	return "gss-client:\n" + out + "gss-server:\n" + said, errors.Join(err, bad)
}

func (s *transcript) gssproxyd(_ *testscript.TestScript, args []string) (string, error) {
	args = append(args, "-c", filepath.Join(s.dir, "gssproxy.conf"), "-C", filepath.Join(s.dir, "conf.d"), "-s", s.daemon.Socket)
	return s.realm.Run(lab.Root, []string{"KRB5_CONFIG=" + s.krb5}, s.realm.Gssproxyd, args...)
}

func (s *transcript) shiftClock(ts *testscript.TestScript, args []string) (string, error) {
	offset, err := time.ParseDuration(args[0])
	if err != nil {
		return "", err
	}
	if s.kdc != nil {
		s.kdc.Stop()
	}
	conf, kdc, err := s.realm.ShiftedKDC(offset)
	if err != nil {
		return "", err
	}
	ts.Defer(func() { kdc.Stop() })
	s.kdc = kdc
	s.clock = append(s.realm.ShiftEnv(offset), "KRB5_CONFIG="+s.krb5)
	return "", os.Rename(conf, s.krb5)
}
