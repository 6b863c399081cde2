package lab

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// sources are the C programs of the lab: MIT's library is the judge of what our daemon makes.
//
//go:embed csrc/*.c
var sources embed.FS

// buildTools compiles the C programs and our plugin into the realm's directory.
func (r *Realm) buildTools(ctx context.Context) error {
	for _, args := range [][]string{
		{"gsstool", "-lgssapi_krb5"},
		{"threads", "-lgssapi_krb5"},
		{"accepts", "-lgssapi_krb5"},
		{"shift", "-shared", "-fPIC", "-o", "libshift.so"},
	} {
		if err := r.buildTool(ctx, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return r.buildPlugin()
}

// BuildTool compiles one of the lab's C programs that use MIT's libraries into the realm's directory,
// with more flags, and returns its path.
func (r *Realm) BuildTool(name string, flags ...string) (string, error) {
	out := r.Path(name)
	return out, r.buildTool(context.Background(), name, append([]string{"-g", "-o", out, "-lgssapi_krb5", "-lkrb5"}, flags...)...)
}

// buildTool compiles one of the C programs. It has the name of its source unless flags say more.
func (r *Realm) buildTool(ctx context.Context, name string, flags ...string) error {
	b, err := fs.ReadFile(sources, "csrc/"+name+".c")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.Dir, name+".c"), b, 0o644); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "cc", append([]string{"-O2", "-Wall", "-o", name, name + ".c"}, flags...)...)
	cmd.Dir = r.Dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

// GSS request and context flags.
const (
	Deleg, Mutual, Replay, Sequence, Conf, Integ = 1, 2, 4, 8, 0x10, 0x20
	ChannelBound                                 = 0x800
	// Usual is what an ordinary client asks for.
	Usual = Replay | Sequence | Conf | Integ
)

// GSSError is what MIT's library answered.
type GSSError struct {
	Major, Minor uint32
	Token        []byte // for the peer, nil if none
	Text         string // both status texts
}

func (e *GSSError) Error() string {
	return fmt.Sprintf("major %#x minor %d:%s", e.Major, e.Minor, e.Text)
}

// Tool is a running gsstool: MIT's libgssapi, with or without the plugin in front, as one user. It
// may be used by several goroutines, one call at a time.
type Tool struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	in  io.WriteCloser
	out *bufio.Reader
	err strings.Builder
}

// Tool starts a gsstool as user u with the variables of env.
func (r *Realm) Tool(u User, env ...string) (*Tool, error) {
	return StartTool(r.Command(u, env, filepath.Join(r.Dir, "gsstool")))
}

// StartTool starts a gsstool by a command of the test's.
func StartTool(cmd *exec.Cmd) (*Tool, error) {
	t := &Tool{cmd: cmd}
	var err error
	if t.in, err = t.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := t.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	t.cmd.Stderr = &t.err
	t.out = bufio.NewReaderSize(out, 1<<16)
	return t, t.cmd.Start()
}

// PID is the process id of the tool.
func (t *Tool) PID() int { return t.cmd.Process.Pid }

// Close ends the tool.
func (t *Tool) Close() error {
	t.in.Close()
	return t.cmd.Wait()
}

// call sends a command and returns the fields after "ok".
func (t *Tool) call(fields ...any) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.exchange(fields...)
}

func (t *Tool) exchange(fields ...any) ([]string, error) {
	var line []byte
	for i, f := range fields {
		if i > 0 {
			line = append(line, ' ')
		}
		switch f := f.(type) {
		case []byte:
			if len(f) == 0 {
				line = append(line, '-')
			}
			line = hex.AppendEncode(line, f)
		default:
			line = fmt.Append(line, f)
		}
	}
	if _, err := t.in.Write(append(line, '\n')); err != nil {
		return nil, t.died(err)
	}
	answer, err := t.out.ReadString('\n')
	if err != nil {
		return nil, t.died(err)
	}
	words := strings.Split(strings.TrimSuffix(answer, "\n"), " ")
	if words[0] == "ok" {
		return words[1:], nil
	}
	if words[0] != "err" || len(words) < 4 {
		return nil, fmt.Errorf("gsstool answered %q", answer)
	}
	major, err1 := strconv.ParseUint(words[1], 10, 32)
	minor, err2 := strconv.ParseUint(words[2], 10, 32)
	token, err3 := unhex(words[3])
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	return nil, &GSSError{uint32(major), uint32(minor), token, " " + strings.Join(words[4:], " ")}
}

// died explains a broken pipe: how the program ended, and its last words.
func (t *Tool) died(err error) error {
	t.in.Close()
	err = errors.Join(err, t.cmd.Wait())
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled() {
		err = fmt.Errorf("killed by %v", exit.Sys().(syscall.WaitStatus).Signal())
	}
	return fmt.Errorf("gsstool ended: %w %s", err, t.err.String())
}

func unhex(s string) ([]byte, error) {
	if s == "-" {
		return nil, nil
	}
	return hex.DecodeString(s)
}

// fields parses an answer: *int, *uint32, *bool, *string and *[]byte (hex).
func fields(words []string, into ...any) error {
	if len(words) != len(into) {
		return fmt.Errorf("gsstool answered %d fields, want %d", len(words), len(into))
	}
	for i, w := range words {
		var err error
		switch p := into[i].(type) {
		case *[]byte:
			*p, err = unhex(w)
		case *string:
			var b []byte
			b, err = unhex(w)
			*p = string(b)
		case *int:
			*p, err = strconv.Atoi(w)
		case *uint32:
			var n uint64
			n, err = strconv.ParseUint(w, 10, 32)
			*p = uint32(n)
		case *bool:
			*p = w != "0"
		}
		if err != nil {
			return fmt.Errorf("gsstool answered %q: %w", w, err)
		}
	}
	return nil
}

// Enctypes limits the session keys of the contexts initiated from now on.
func (t *Tool) Enctypes(ids ...int) error {
	s := make([]string, len(ids))
	for i, id := range ids {
		s[i] = strconv.Itoa(id)
	}
	_, err := t.call("enctypes", strings.Join(s, ","))
	return err
}

// Allow sets the only enctype that the acquired acceptor credential takes.
func (t *Tool) Allow(enctype int) error {
	_, err := t.call("allow", strconv.Itoa(enctype))
	return err
}

// Acquire gets the acceptor credential of a hostbased service, or with "" the default one.
func (t *Tool) Acquire(service string) error {
	if service == "" {
		service = "-"
	}
	_, err := t.call("acquire", service)
	return err
}

// Credential is what the library says of a credential: its name, lifetime, and usage (0 both, 1
// initiate, 2 accept).
type Credential struct {
	Name     string
	Lifetime uint32
	Usage    int
}

// Credential gets the credential of a name ("" for none) of a type (user, hostbased, principal,
// uid, machineuid) and usage; contexts are initiated and accepted with it from now on.
func (t *Tool) Credential(name, typ string, usage int) (c Credential, err error) {
	w, err := t.call("credential", []byte(name), typ, usage)
	if err == nil {
		err = fields(w, &c.Name, &c.Lifetime, &c.Usage)
	}
	return c, err
}

// NoCIFlags has contexts that are initiated with the credential there is go without confidentiality
// and integrity unless they are asked for.
func (t *Tool) NoCIFlags() error {
	_, err := t.call("noci")
	return err
}

// Impersonate gets, with the credential there is, one for a user; contexts are initiated with it
// from now on.
func (t *Tool) Impersonate(name, typ string) (c Credential, err error) {
	w, err := t.call("impersonate", []byte(name), typ)
	if err == nil {
		err = fields(w, &c.Name, &c.Lifetime, &c.Usage)
	}
	return c, err
}

// Store puts the credential that contexts are initiated with into a credential cache.
func (t *Tool) Store(ccache string) error {
	_, err := t.call("store", "-", ccache)
	return err
}

// StoreDelegated puts the credential delegated in context id into a credential cache.
func (t *Tool) StoreDelegated(id int, ccache string) error {
	_, err := t.call("store", id, ccache)
	return err
}

// From gets the credential in a cache; contexts are initiated with it from now on.
func (t *Tool) From(ccache string) (c Credential, err error) {
	w, err := t.call("from", ccache)
	if err == nil {
		err = fields(w, &c.Name, &c.Lifetime, &c.Usage)
	}
	return c, err
}

// Init starts a context towards a hostbased service. bindings are the application data of channel
// bindings, nil for none.
func (t *Tool) Init(target string, flags uint32, bindings []byte) (id int, token []byte, err error) {
	w, err := t.call("init", target, flags, bindings)
	if err == nil {
		err = fields(w, &id, new(uint32), &token)
	}
	return id, token, err
}

// Step gives an initiator the acceptor's answer. complete says whether the context is established.
func (t *Tool) Step(id int, token []byte) (complete bool, reply []byte, err error) {
	w, err := t.call("step", id, token)
	var major uint32
	if err == nil {
		err = fields(w, &major, &reply)
	}
	return major == 0, reply, err
}

// Tokens makes n first tokens towards a hostbased service; nothing remains of the contexts.
func (t *Tool) Tokens(n int, target string, flags uint32, bindings []byte) ([][]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.exchange("tokens", n, target, flags, bindings); err != nil {
		return nil, err
	}
	tokens := make([][]byte, n)
	for i := range tokens {
		line, err := t.out.ReadSlice('\n')
		if err != nil {
			return nil, t.died(err)
		}
		tokens[i] = make([]byte, hex.DecodedLen(len(line)-1))
		if _, err := hex.Decode(tokens[i], line[:len(line)-1]); err != nil {
			return nil, err
		}
	}
	return tokens, nil
}

// Accepted is what an acceptor learned.
type Accepted struct {
	ID        int
	Major     uint32
	Token     []byte // for the initiator
	Client    string
	Flags     uint32
	Delegated bool
}

// Accept is gss_accept_sec_context with the acquired credential.
func (t *Tool) Accept(token, bindings []byte) (a Accepted, err error) {
	w, err := t.call("accept", token, bindings)
	if err == nil {
		err = fields(w, &a.ID, &a.Major, &a.Token, &a.Client, &a.Flags, &a.Delegated)
	}
	return a, err
}

// Accepts accepts contexts with the acquired credential, one after the other, and forgets each when
// the initiator's name is known. It returns the processor time and the time that took.
func (t *Tool) Accepts(tokens [][]byte) (cpu, elapsed time.Duration, err error) {
	command := []any{"accepts"}
	for _, token := range tokens {
		command = append(command, token)
	}
	w, err := t.call(command...)
	var ns [2]int
	if err == nil {
		err = fields(w, &ns[0], &ns[1])
	}
	return time.Duration(ns[0]), time.Duration(ns[1]), err
}

// Resume gives an acceptor, whose context is not established yet, the initiator's next token.
func (t *Tool) Resume(id int, token []byte) (a Accepted, err error) {
	w, err := t.call("resume", id, token)
	if err == nil {
		err = fields(w, &a.ID, &a.Major, &a.Token, &a.Client, &a.Flags, &a.Delegated)
	}
	return a, err
}

// Import is gss_import_sec_context.
func (t *Tool) Import(token []byte) (id int, err error) {
	w, err := t.call("import", token)
	if err == nil {
		err = fields(w, &id)
	}
	return id, err
}

// Export is gss_export_sec_context; the context is gone afterwards.
func (t *Tool) Export(id int) (token []byte, err error) {
	w, err := t.call("export", id)
	if err == nil {
		err = fields(w, &token)
	}
	return token, err
}

// Inquired is the answer of gss_inquire_context.
type Inquired struct {
	Source, Target  string
	Lifetime, Flags uint32
	Local, Open     bool
}

// Inquire is gss_inquire_context.
func (t *Tool) Inquire(id int) (q Inquired, err error) {
	w, err := t.call("inquire", id)
	if err == nil {
		err = fields(w, &q.Source, &q.Target, &q.Lifetime, &q.Flags, &q.Local, &q.Open)
	}
	return q, err
}

// Wrap is gss_wrap.
func (t *Tool) Wrap(id int, conf bool, msg []byte) (token []byte, err error) {
	w, err := t.call("wrap", id, btoi(conf), msg)
	var state bool
	if err == nil {
		err = fields(w, &state, &token)
	}
	if err == nil && state != conf {
		err = fmt.Errorf("asked for confidentiality %v, got %v", conf, state)
	}
	return token, err
}

// Unwrap is gss_unwrap.
func (t *Tool) Unwrap(id int, token []byte) (msg []byte, conf bool, major uint32, err error) {
	w, err := t.call("unwrap", id, token)
	if err == nil {
		err = fields(w, &major, &conf, &msg)
	}
	return msg, conf, major, err
}

// MIC is gss_get_mic.
func (t *Tool) MIC(id int, msg []byte) (token []byte, err error) {
	w, err := t.call("mic", id, msg)
	if err == nil {
		err = fields(w, &token)
	}
	return token, err
}

// Verify is gss_verify_mic.
func (t *Tool) Verify(id int, msg, mic []byte) (major uint32, err error) {
	w, err := t.call("verify", id, msg, mic)
	if err == nil {
		err = fields(w, &major)
	}
	return major, err
}

// Limit is gss_wrap_size_limit.
func (t *Tool) Limit(id int, conf bool, size uint32) (max uint32, err error) {
	w, err := t.call("limit", id, btoi(conf), size)
	if err == nil {
		err = fields(w, &max)
	}
	return max, err
}

// PRF is gss_pseudo_random with the full or the partial key.
func (t *Tool) PRF(id int, full bool, n int, in []byte) (out []byte, err error) {
	w, err := t.call("prf", id, btoi(full), n, in)
	if err == nil {
		err = fields(w, &out)
	}
	return out, err
}

// Key is the context's session key (the acceptor subkey if there is one) and its enctype.
func (t *Tool) Key(id int) (enctype int, key []byte, err error) {
	w, err := t.call("key", id)
	if err == nil {
		err = fields(w, &enctype, &key)
	}
	return enctype, key, err
}

// Attribute is one name attribute of an initiator.
type Attribute struct {
	Name                    string
	Authenticated, Complete bool
	Value                   []byte
}

// Attributes are the initiator's name attributes.
func (t *Tool) Attributes(id int) ([]Attribute, error) {
	words, err := t.call("attrs", id)
	if err != nil {
		return nil, err
	}
	var list []Attribute
	for _, w := range words {
		parts := strings.SplitN(w, "=", 3)
		if len(parts) != 3 {
			return nil, fmt.Errorf("gsstool answered the attribute %q", w)
		}
		value, err := unhex(parts[2])
		if err != nil {
			return nil, err
		}
		list = append(list, Attribute{parts[0], strings.Contains(parts[1], "A"), strings.Contains(parts[1], "C"), value})
	}
	return list, nil
}

// UseDelegated initiates a context to a service with the credential delegated in context id.
func (t *Tool) UseDelegated(id int, target string) (client string, token []byte, err error) {
	w, err := t.call("delegated", id, target)
	if err == nil {
		err = fields(w, &client, &token)
	}
	return client, token, err
}

// Delete forgets a context.
func (t *Tool) Delete(id int) error {
	_, err := t.call("delete", id)
	return err
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// End is one side of an established context.
type End struct {
	Tool *Tool
	ID   int
}

// Converse sends messages of several sizes both ways between two ends, wrapped with and without
// confidentiality and with a MIC beside them, and checks that each arrives, that a changed one does
// not, and that both ends derive the same pseudo-random bytes.
func Converse(a, b End) error {
	if err := Messages(a, b); err != nil {
		return err
	}
	for _, full := range []bool{false, true} {
		x, err := a.Tool.PRF(a.ID, full, 40, []byte("lab"))
		if err != nil {
			return err
		}
		y, err := b.Tool.PRF(b.ID, full, 40, []byte("lab"))
		if err != nil {
			return err
		}
		if !bytes.Equal(x, y) {
			return fmt.Errorf("pseudo-random bytes differ (full key: %v)", full)
		}
	}
	return nil
}

// Messages is Converse without the pseudo-random bytes.
func Messages(a, b End) error {
	for i, size := range []int{1, 16, 1000, 20000} {
		msg := make([]byte, size)
		for j := range msg {
			msg[j] = byte(i + j)
		}
		for _, way := range []struct {
			name     string
			from, to End
		}{{"forth", a, b}, {"back", b, a}} {
			if err := send(way.from, way.to, msg); err != nil {
				return fmt.Errorf("%d bytes %s: %w", size, way.name, err)
			}
		}
	}
	return nil
}

func send(from, to End, msg []byte) error {
	for _, conf := range []bool{false, true} {
		token, err := from.Tool.Wrap(from.ID, conf, msg)
		if err != nil {
			return fmt.Errorf("wrap: %w", err)
		}
		if conf == bytes.Contains(token, msg) && len(msg) >= 16 {
			return fmt.Errorf("wrap with confidentiality %v: message visible in the token: %v", conf, !conf)
		}
		got, sealed, major, err := to.Tool.Unwrap(to.ID, token)
		if err != nil {
			return fmt.Errorf("unwrap: %w", err)
		}
		if !bytes.Equal(got, msg) || sealed != conf || major != 0 {
			return fmt.Errorf("unwrap: %d bytes, confidentiality %v, major %#x; sent %d, %v", len(got), sealed, major, len(msg), conf)
		}
	}
	mic, err := from.Tool.MIC(from.ID, msg)
	if err != nil {
		return fmt.Errorf("MIC: %w", err)
	}
	if major, err := to.Tool.Verify(to.ID, msg, mic); err != nil || major != 0 {
		return fmt.Errorf("verify: major %#x, %w", major, err)
	}
	mic[len(mic)-1] ^= 1
	// Heimdal looks at the sequence number first, and has seen it.
	if major, err := to.Tool.Verify(to.ID, msg, mic); err == nil && major == 0 {
		return errors.New("verify: a changed MIC was taken")
	}
	return nil
}
