package files

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
)

// told is a program in Python that does with files what each line of its input says, and prints what
// came of it: the name of an error, and what was read.
const told = calls + `
import base64
opened = {}
def at(path): return os.path.join(fs, path)
def all_of(fd):
    b = b""
    while part := os.read(fd, 1 << 20): b += part
    return b
def read(path):
    fd = os.open(at(path), os.O_RDONLY)
    try: return all_of(fd)
    finally: os.close(fd)
def write(path, text):
    fd = os.open(at(path), os.O_WRONLY | os.O_TRUNC)
    try: os.write(fd, text.encode())
    finally: os.close(fd)
def told(f, *args):
    try: return "", f(*args) or b""
    except OSError as e: return errno.errorcode[e.errno], b""
def talk(path, text, handle=""): # to what is open by that name, or is opened
    fd = opened[handle] if handle in opened else os.open(at(path), os.O_RDWR)
    if handle: opened[handle] = fd
    try: return told(os.write, fd, text.encode())[0], told(all_of, fd)[1]
    finally:
        if not handle: os.close(fd)
def step(path, question):
    write(path + "/inputs", question)
    wrong = told(write, path + "/control", "execute")[0]
    return wrong, read(path + ("/error" if wrong else "/outputs"))
def walk(): # also what is there and not listed, since the caller may not do it
    roots = [fs] + [ops + name for name in ("init", "accept", "wrap", "unwrap", "getmic", "verifymic", "names")]
    paths = {os.path.relpath(os.path.join(dir, name), fs) for root in roots for dir, _, names in os.walk(root) for name in names}
    found = {path: told(read, path) for path in paths}
    return json.dumps({path: {"errno": wrong, "content": base64.b64encode(text).decode()} for path, (wrong, text) in found.items()}).encode()
does = {
    "read": read, "write": write, "talk": talk, "step": step, "walk": walk,
    "mkdir": lambda path: os.mkdir(at(path)), "rmdir": lambda path: os.rmdir(at(path)), "cd": lambda path: os.chdir(at(path)),
    "list": lambda path: json.dumps(os.listdir(at(path))).encode(),
}
for line in sys.stdin:
    what, *args = json.loads(line)
    wrong, content = told(does[what], *args)
    if type(content) is tuple: wrong, content = content
    print(json.dumps([wrong, base64.b64encode(content or b"").decode()]), flush=True)
`

// session is a process of a user's that leads a session. Paths are below the mount.
type session struct {
	t     testing.TB
	pid   int
	in    io.WriteCloser
	out   *bufio.Reader
	heard io.Writer
}

// session starts one, which ends with the test or by end.
func (m *mount) session(t testing.TB, u lab.User) *session {
	t.Helper()
	cmd := m.as(t, u, m.home(t, u), "/usr/bin/python3", "-u", "-c", told, m.dir, "HTTP@"+lab.Host)
	wrong := m.hears(fmt.Sprintf("errors of a session of uid %d", u.UID))
	cmd.Stderr = wrong
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
		if wrong.String() != "" {
			t.Errorf("a session of uid %d: %s", u.UID, wrong)
		}
	})
	return &session{t, cmd.Process.Pid, in, bufio.NewReader(out), m.hears(fmt.Sprintf("what is read in a session of uid %d", u.UID))}
}

// do has something done, and returns what was read and the name of the error, which is empty for none.
func (s *session) do(what string, args ...string) (content []byte, errno string) {
	s.t.Helper()
	line, err := json.Marshal(append([]string{what}, args...))
	check(s.t, err)
	_, err = s.in.Write(append(line, '\n'))
	check(s.t, err)
	line, err = s.out.ReadBytes('\n')
	if err != nil {
		s.t.Fatalf("%s %q: %v", what, args, err)
	}
	check(s.t, json.Unmarshal(line, &[]any{&errno, &content}))
	s.heard.Write(append(content, '\n'))
	return content, errno
}

// must is do for what is to succeed.
func (s *session) must(what string, args ...string) string {
	s.t.Helper()
	content, errno := s.do(what, args...)
	if errno != "" {
		s.t.Fatalf("%s %q: %s", what, args, errno)
	}
	return string(content)
}

// end ends the process, and the session.
func (s *session) end() { s.in.Close() }

// fields are what is asked.
type fields map[string]any

// answer is what docs/json.md has for answers of all operations, and the error of the file system.
type answer struct {
	Token, Message                 []byte
	Established                    bool
	Context                        string
	Initiator, User, Acceptor      string
	Flags                          []string
	Expires                        string
	Delegated, Encrypted, Verified bool
	Name                           string
	Reason, Text, Hint             string

	errno string
}

const operations = "modules/krb5/operations/"

// ask asks through a transact that is kept open by a name, or through a new one if that is empty.
func (s *session) ask(kept, operation string, question fields) (a answer) {
	s.t.Helper()
	b, err := json.Marshal(question)
	check(s.t, err)
	b, a.errno = s.do("talk", operations+operation+"/transact", string(b), kept)
	if len(b) > 0 {
		check(s.t, json.Unmarshal(b, &a))
	}
	return a
}

// step asks through an execution.
func (s *session) step(dir string, question fields) (a answer) {
	s.t.Helper()
	b, err := json.Marshal(question)
	check(s.t, err)
	b, a.errno = s.do("step", dir, string(b))
	if a.errno != "" {
		a.Reason, a.Text, _ = strings.Cut(string(b), ": ")
		return a
	}
	check(s.t, json.Unmarshal(b, &a))
	return a
}

// execution makes an execution and returns its path.
func (s *session) execution(operation, name string) string {
	s.t.Helper()
	dir := path.Join(operations, operation, "execution", name)
	s.must("mkdir", dir)
	return dir
}

// readTree reads what root and others can read of the tree, each in a session that has an execution and, if it may, a
// context, and asks what it may. What has to be readable is read.
func (m *mount) readTree(t testing.TB) {
	t.Helper()
	target := fields{"target": "HTTP@" + lab.Host}
	var token []byte // of client's, which root accepts
	for _, u := range []lab.User{client, both, lab.Root, stranger} {
		s := m.session(t, u)
		named := map[string]bool{"modules/krb5/status": true} // whether there has to be something in it
		for _, op := range []string{"init", "accept", "wrap", "unwrap", "getmic", "verifymic", "names"} {
			named[operations+op+"/help"] = true
		}
		asks := func(operation string, question fields) (dir string, a answer) {
			t.Helper()
			dir = s.execution(operation, fmt.Sprint("read by ", u.UID))
			a = s.step(dir, question)
			named[dir+"/inputs"], named[dir+"/outputs"], named[dir+"/error"] = true, a.errno == "", a.Reason != ""
			return dir, a
		}
		established := func(a answer) {
			t.Helper()
			if !a.Established {
				t.Errorf("uid %d has no context: %s %s: %s", u.UID, a.errno, a.Reason, a.Text)
			}
			for _, name := range []string{"peer", "flags", "expires"} {
				named[path.Join("contexts", a.Context, name)] = true
			}
		}
		switch u {
		case client:
			_, ours := asks("init", fields{"target": target["target"], "flags": []string{"conf", "integ"}})
			established(ours)
			token = ours.Token
		case both:
			dir, ours := asks("init", target)
			theirs := s.ask("", "accept", fields{"token": ours.Token})
			established(theirs)
			ours = s.step(dir, fields{"token": theirs.Token})
			established(ours)
			hello := []byte("hello")
			wrapped := s.ask("", "wrap", fields{"context": ours.Context, "message": hello})
			mic := s.ask("", "getmic", fields{"context": ours.Context, "message": hello})
			if a := s.ask("", "unwrap", fields{"context": theirs.Context, "token": wrapped.Token}); string(a.Message) != "hello" || !a.Encrypted {
				t.Errorf("unwrap: %+v", a)
			}
			if a := s.ask("", "verifymic", fields{"context": theirs.Context, "message": hello, "token": mic.Token}); !a.Verified {
				t.Errorf("verifymic: %+v", a)
			}
			if a := s.ask("", "names", fields{"name": "alice@" + lab.Name}); a.Name != "alice@"+lab.Name {
				t.Errorf("names: %+v", a)
			}
		case lab.Root:
			if _, a := asks("init", target); a.Reason != "usage-not-allowed" {
				t.Errorf("init: %+v", a)
			}
			_, a := asks("accept", fields{"token": token})
			established(a)
			named["keys"], named["log"] = true, true
			if words, errno := s.do("talk", "ctl", "drop NONE\n"); errno != "EINVAL" || len(words) == 0 {
				t.Errorf("ctl: %s: %s", errno, words)
			}
		case stranger:
			if _, a := asks("init", target); a.errno != "EACCES" {
				t.Errorf("init: %+v", a)
			}
		}
		var found map[string]struct {
			Errno   string
			Content []byte
		}
		check(t, json.Unmarshal([]byte(s.must("walk")), &found))
		for name, file := range found {
			s.heard.Write(append(file.Content, '\n'))
			if _, mine := named[name]; !mine && file.Errno == "" && !strings.HasPrefix(name, "contexts/") && !strings.Contains(name, "/execution/") {
				t.Errorf("uid %d reads %s", u.UID, name)
			}
		}
		for name, full := range named {
			if file, there := found[name]; !there || file.Errno != "" || full && len(file.Content) == 0 {
				t.Errorf("uid %d does not read %s: found %v, %s, %d bytes", u.UID, name, there, file.Errno, len(file.Content))
			}
		}
		s.end()
	}
}

// scan reads the tree and looks for keys in that and in all that programs have said before: for those of keytabs, and those of
// contexts and tickets, which the test knows from the tokens and keytabs as no caller can.
func (m *mount) scan(t testing.TB) {
	t.Helper()
	m.readTree(t)
	keys := 0
	for _, o := range m.heard {
		keys += m.Overhear([]byte(o.String()))
	}
	// Of the two contexts above the session keys, the initiators' subkeys and, of one, the acceptor's.
	if keys < 5 {
		t.Errorf("the keys of contexts are not known, but %d", keys)
	}
	for _, o := range m.heard {
		check(t, m.Scan(o.what, []byte(o.String())))
	}
}
