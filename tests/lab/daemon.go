package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Options of a daemon. The zero value with a Keytab is an acceptor for everybody.
type Options struct {
	Keytab   string   // of the service in the default configuration, and KRB5_KTNAME
	Config   string   // text of gssproxy.conf; empty: DefaultConfig(Keytab)
	RCache   string   // KRB5RCACHENAME; empty: a file of the daemon's own directory
	Krb5Conf string   // KRB5_CONFIG; empty: the realm's
	Dir      string   // state, sockets and log; empty: a new one. Two daemons never share one at the same time
	Env      []string // more variables, which win
	Becomes  User     // whom run_as_user names: the state directory is that user's
	DropIn   string   // of dist/gssproxyd.service.d, which the daemon needs where UnderUnit says that it has the unit's rights
	Binary   string   // of Ours, instead of Realm.Gssproxyd
	Quiet    bool     // no debugging output: for measurements
}

// DefaultConfig serves every local user with the keytab, as acceptor and for names.
func DefaultConfig(keytab string) string {
	return `[gssproxy]
  debug_level = 1

[service/lab]
  mechs = krb5
  euid = 0
  allow_any_uid = yes
  cred_store = keytab:` + keytab + `
  cred_usage = accept
`
}

// Daemon is a running gssproxy, the C one or ours.
type Daemon struct {
	*Process
	Kind    string // "C" or "ours"
	Options Options
	Socket  string
	realm   *Realm
	argv0   string
	scanned scanned // what of its files has been looked at for keys
}

// CDaemon starts Debian's gssproxy.
func (r *Realm) CDaemon(o Options) (*Daemon, error) {
	return r.start("C", "/usr/sbin/gssproxy", o)
}

// Ours starts gssproxyd with the same command line, configuration and environment.
func (r *Realm) Ours(o Options) (*Daemon, error) {
	binary := o.Binary
	if binary == "" {
		var err error
		if binary, err = r.gssproxyd(); err != nil {
			return nil, err
		}
	}
	return r.start("ours", binary, o)
}

// Kinds are the daemons a test can be run over.
var Kinds = []string{"C", "ours"}

// Daemon starts the daemon of the kind, "C" or "ours".
func (r *Realm) Daemon(kind string, o Options) (*Daemon, error) {
	if kind == "C" {
		return r.CDaemon(o)
	}
	return r.Ours(o)
}

// gssproxyd is the path of our daemon, built on first use.
func (r *Realm) gssproxyd() (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Gssproxyd != "" {
		return r.Gssproxyd, nil
	}
	out := filepath.Join(r.Dir, "gssproxyd")
	// The race detector needs what the unit takes away.
	if err := Build(out, !UnderUnit()); err != nil {
		return "", err
	}
	r.Gssproxyd = out
	return out, nil
}

// Build builds gssproxyd: static, as it is shipped, or with the race detector.
func Build(out string, race bool) error { return BuildProgram("./gssproxyd", out, race) }

// BuildProgram is Build for another of the module's programs, which is named as go build takes it.
func BuildProgram(program, out string, race bool) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	// Git refuses to tell root of a checkout that another user owns.
	args, env := []string{"build", "-trimpath", "-buildvcs=false", "-o", out}, "CGO_ENABLED=0"
	if race {
		args, env = append(args, "-race"), "CGO_ENABLED=1"
	}
	cmd := exec.Command("go", append(args, program)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, text)
	}
	return nil
}

// moduleRoot walks up from the working directory to go.mod.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("no go.mod above the working directory: run inside the module")
		}
		dir = filepath.Dir(dir)
	}
}

func (r *Realm) start(kind, argv0 string, o Options) (*Daemon, error) {
	if o.Config == "" {
		o.Config = DefaultConfig(o.Keytab)
	}
	if o.Quiet {
		o.Config = strings.ReplaceAll(o.Config, "debug_level = 1", "debug_level = 0")
	}
	if o.Dir == "" {
		o.Dir = r.Path("daemon-" + kind)
	}
	for _, sub := range []string{"", "state", "conf.d"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	state := filepath.Join(o.Dir, "state")
	if kind == "ours" && o.Becomes == Root {
		var err error
		if o.Becomes, err = OursRunsAs(); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(os.Chmod(state, 0o700), os.Chown(state, int(o.Becomes.UID), int(o.Becomes.GID))); err != nil {
		return nil, err
	}
	if o.RCache == "" {
		o.RCache = "file2:" + filepath.Join(o.Dir, "state", "rcache2")
	}
	if o.Krb5Conf == "" {
		o.Krb5Conf = r.Conf
	}
	d := &Daemon{Kind: kind, Options: o, Socket: filepath.Join(o.Dir, "sock"), realm: r, argv0: argv0, scanned: scanned{}}
	if err := d.Configure(o.Config); err != nil {
		return nil, err
	}
	return d, d.Start()
}

// Configure replaces the text of the configuration; Reload makes a running daemon read it.
func (d *Daemon) Configure(text string) error {
	return os.WriteFile(filepath.Join(d.Options.Dir, "gssproxy.conf"), []byte(text), 0o600)
}

// Start starts the daemon again after Stop or Kill, in the same directory, and waits until it
// answers.
func (d *Daemon) Start() error {
	o := d.Options
	env := append([]string{
		"KRB5_CONFIG=" + o.Krb5Conf, "KRB5_KTNAME=FILE:" + o.Keytab, "KRB5RCACHENAME=" + o.RCache,
		"GSSPROXYD_STATE_DIR=" + filepath.Join(o.Dir, "state"), "GSSPROXYD_PID_FILE=" + filepath.Join(o.Dir, "pid"),
	}, o.Env...)
	args := []string{"-i", "-c", filepath.Join(o.Dir, "gssproxy.conf"), "-C", filepath.Join(o.Dir, "conf.d"), "-s", d.Socket}
	if !o.Quiet {
		args = append(args, "-d")
	}
	os.Remove(d.Socket)
	log := filepath.Join(o.Dir, "log")
	var p *Process
	var err error
	if d.Kind == "ours" && UnderUnit() {
		p, err = d.realm.startUnit(d.realm.Command(Root, env, d.argv0, append(args, "--run-as-user=gssproxyd")...), o.DropIn, log)
	} else {
		p, err = d.realm.Start(d.realm.Command(Root, env, d.argv0, args...), log)
	}
	if err != nil {
		return err
	}
	d.Process = p
	if err := p.wait(Patience, "answer on "+d.Socket, d.answers); err != nil {
		return errors.Join(err, d.scan())
	}
	if d.Kind == "ours" {
		d.sealKeys() // no reply has one
	}
	return nil
}

// answers makes one INDICATE_MECHS call, the smallest both daemons answer.
func (d *Daemon) answers() bool {
	c, err := net.Dial("unix", d.Socket)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(Patience))
	call := [56]byte{0: 0x80, 3: 52, 7: 1, 15: 2, 17: 6, 18: 0x1a, 19: 0xf0, 23: 1, 27: 1}
	if _, err := c.Write(call[:]); err != nil {
		return false
	}
	n, err := c.Read(call[:])
	return err == nil && n > 0
}

// Restart stops the daemon in good order and starts it again in the same directory.
func (d *Daemon) Restart() error {
	if err := d.Stop(); err != nil {
		return err
	}
	return d.Start()
}

// Crash kills the daemon (SIGKILL) and starts it again in the same directory.
func (d *Daemon) Crash() error {
	d.Process.Kill()
	return errors.Join(d.scan(), d.Start())
}

// Stop ends the daemon; one that was stopped by the signal has ended well. That a key is in what ours
// has written is an error.
func (d *Daemon) Stop() error {
	err := d.Process.Stop()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM {
		err = nil
	}
	return errors.Join(err, d.scan())
}

// Kill ends the daemon at once; as with Stop, a key in what it has written is an error.
func (d *Daemon) Kill() error { return errors.Join(d.Process.Kill(), d.scan()) }

// Reload sends SIGHUP and waits until the daemon says it has read its configuration.
func (d *Daemon) Reload() error {
	const text = "New config loaded successfully."
	n := strings.Count(d.Output(), text)
	if err := d.Cmd.Process.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	return d.wait(Patience, "reload", func() bool { return strings.Count(d.Output(), text) > n })
}

// PluginEnv makes an unmodified GSS-API program use this daemon, and only it.
func (d *Daemon) PluginEnv() []string { return d.realm.PluginEnv(d.Socket) }

// PluginEnvOf is PluginEnv with a plugin of the test's choice.
func (d *Daemon) PluginEnvOf(p Plugin) []string { return d.realm.PluginEnvOf(p, d.Socket) }

// CPU is the time all threads of the daemon have run.
func (d *Daemon) CPU() (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", d.PID()))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", t, err)
		}
		sum += time.Duration(ns)
	}
	if sum == 0 {
		return 0, fmt.Errorf("no schedstat of process %d", d.PID())
	}
	return sum, nil
}

// RSS is the daemon's resident memory in bytes: now, and the most it has ever had.
func (d *Daemon) RSS() (now, peak int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID()))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kb); n == 1 {
			now = kb << 10
		}
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kb); n == 1 {
			peak = kb << 10
		}
	}
	return now, peak, nil
}

// Dial connects to the daemon.
func (d *Daemon) Dial(ctx context.Context) (*net.UnixConn, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", d.Socket)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}
