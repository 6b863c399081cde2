package sealed

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"
)

func newIdentity(t *testing.T) *Identity {
	t.Helper()
	secret, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return &Identity{secret: secret, file: "/state/host.age"}
}

func mustSeal(t *testing.T, plain string, to ...*Recipient) []byte {
	t.Helper()
	b, err := Seal([]byte(plain), to...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func armored(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := armor.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestSealAndOpen(t *testing.T) {
	i, other := newIdentity(t), newIdentity(t)
	for name, plain := range map[string]string{
		"nothing": "", "a little": "keys", "a chunk": strings.Repeat("k", 64<<10), "more than a chunk": strings.Repeat("k", 64<<10+1), "a lot": strings.Repeat("keys", 1<<20),
	} {
		content := mustSeal(t, plain, i.Recipient(), other.Recipient())
		text := armored(t, content)
		for how, content := range map[string][]byte{
			"binary": content, "armored": text, "with CRLF": bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n")), "after blank lines": append([]byte("\n \n"), text...),
		} {
			for _, i := range []*Identity{i, other} {
				got, err := i.Open(content)
				if err != nil || string(got) != plain {
					t.Errorf("%s, %s: %d bytes, %v", name, how, len(got), err)
				}
			}
		}
	}
}

func TestNotOpened(t *testing.T) {
	i, other := newIdentity(t), newIdentity(t)
	content := mustSeal(t, "keys", i.Recipient())
	passphrase, err := age.NewScryptRecipient("secret")
	if err != nil {
		t.Fatal(err)
	}
	passphrase.SetWorkFactor(10)
	var scrypt bytes.Buffer
	w, err := age.Encrypt(&scrypt, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	many := mustSeal(t, "keys", crowd(other.Recipient(), maxRecipients+1)...)
	notOurs := "not sealed to this host, whose recipient is " + i.Recipient().String()
	for name, test := range map[string]struct {
		content []byte
		want    string
	}{
		"empty":                   {nil, "no age file"},
		"a keytab":                {[]byte("\x05\x02\x00\x00"), "no age file"},
		"another's":               {mustSeal(t, "keys", other.Recipient()), notOurs},
		"with a passphrase":       {scrypt.Bytes(), notOurs},
		"to a crowd":              {many, "more than 1000 recipients"},
		"with something behind":   {append(bytes.Clone(content), 'x'), "cut off or changed"},
		"behind the armor":        {append(armored(t, content), "-----"...), "cut off or changed"},
		"of a version to come":    {bytes.Replace(content, []byte("/v1"), []byte("/v2"), 1), "no age file"},
		"too long":                {append(bytes.Clone(content), make([]byte, MaxSize)...), "at most 16777216 are opened"},
		"a header without an end": {bytes.Repeat([]byte(intro), 100), "cut off or changed"},
	} {
		got, err := i.Open(test.content)
		if got != nil || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %q, %v, want %s", name, string(got), err, test.want)
		}
	}
	if _, err := Seal(make([]byte, MaxSize), i.Recipient()); err == nil {
		t.Error("what could not be opened is sealed")
	}
	if _, err := Seal([]byte("keys")); err == nil {
		t.Error("sealed to nobody")
	}
}

func crowd(r *Recipient, n int) (list []*Recipient) {
	for range n {
		list = append(list, r)
	}
	return list
}

// TestDamaged: whatever is cut off, and whichever bit is another, nothing is opened, and never another
// content.
func TestDamaged(t *testing.T) {
	i := newIdentity(t)
	content := mustSeal(t, "the keys of a small keytab", i.Recipient())
	for _, content := range [][]byte{content, armored(t, content)} {
		for n := range content {
			if got, err := i.Open(content[:n]); err == nil && string(got) != "the keys of a small keytab" || got == nil != (err != nil) {
				t.Errorf("%d of %d bytes: %d bytes, %v", n, len(content), len(got), err)
			} else if err == nil && len(bytes.TrimSpace(content[n:])) > 0 {
				t.Errorf("%d of %d bytes are opened", n, len(content))
			}
			for bit := range 8 {
				b := bytes.Clone(content)
				b[n] ^= 1 << bit
				got, err := i.Open(b)
				if err == nil && !blank(content[n], b[n]) {
					t.Errorf("byte %d, bit %d: opened, %d bytes", n, bit, len(got))
				}
			}
		}
	}
}

// blank reports whether both are what is between the lines of an armored file.
func blank(a, b byte) bool {
	return bytes.ContainsRune([]byte("\r\n \t\v\f"), rune(a)) && bytes.ContainsRune([]byte("\r\n \t\v\f"), rune(b))
}

// TestAge: the tools that everybody has make what is opened here, and open what is sealed here.
func TestAge(t *testing.T) {
	for _, tool := range []string{"age", "age-keygen"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("not run: %v", err)
		}
	}
	dir := privateDir(t)
	run := func(stdin []byte, name string, args ...string) []byte {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Stdin = bytes.NewReader(stdin)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, &stderr)
		}
		return out
	}
	file := dir + "/" + FileName
	run(nil, "age-keygen", "-o", file)
	theirs, err := HostIdentity("", dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(run(nil, "age-keygen", "-y", file))); got != theirs.Recipient().String() {
		t.Errorf("recipient %s, want %s", theirs.Recipient(), got)
	}
	second := privateDir(t)
	ours, err := MakeHostIdentity("", second)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(run(nil, "age-keygen", "-y", second+"/"+FileName))); got != ours.Recipient().String() {
		t.Errorf("recipient %s, want %s", got, ours.Recipient())
	}
	for _, i := range []*Identity{theirs, ours} {
		for _, option := range []string{"--encrypt", "--armor"} {
			content := run([]byte("keys of theirs"), "age", option, "-r", i.Recipient().String())
			if got, err := i.Open(content); err != nil || string(got) != "keys of theirs" {
				t.Errorf("%s: %q, %v", option, string(got), err)
			}
		}
		if got := run(mustSeal(t, "keys of ours", i.Recipient()), "age", "-d", "-i", i.File()); string(got) != "keys of ours" {
			t.Errorf("age opens %q", got)
		}
	}
}

func TestParseRecipient(t *testing.T) {
	i := newIdentity(t)
	if r, err := ParseRecipient(i.Recipient().String()); err != nil || r.String() != i.Recipient().String() {
		t.Errorf("%v, %v", r, err)
	}
	secret := i.secret.String()
	for _, s := range []string{"", "age1", i.Recipient().String() + "q", "ssh-ed25519 AAAA", secret, strings.ToLower(secret)} {
		_, err := ParseRecipient(s)
		if err == nil {
			t.Errorf("%q is a recipient", s)
		} else if strings.Contains(strings.ToUpper(err.Error()), secret) {
			t.Error("an identity is in the error")
		}
	}
}

func TestPrintsNoSecret(t *testing.T) {
	i := newIdentity(t)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got := fmt.Sprintf(verb, *i) + fmt.Sprintf(verb, i); got != "[redacted][redacted]" {
			t.Errorf("%s: %s", verb, got)
		}
	}
}

// FuzzOpen: whatever is in a file, there is an error or what was sealed, and never both.
func FuzzOpen(f *testing.F) {
	secret, err := age.GenerateX25519Identity()
	if err != nil {
		f.Fatal(err)
	}
	i := &Identity{secret: secret}
	content, err := Seal([]byte("keys"), i.Recipient())
	if err != nil {
		f.Fatal(err)
	}
	var text bytes.Buffer
	w := armor.NewWriter(&text)
	w.Write(content)
	w.Close()
	f.Add(content)
	f.Add(text.Bytes())
	f.Add([]byte(intro + "-> X25519 \n-> scrypt\n---"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := i.Open(b); (got == nil) != (err != nil) || err == nil && string(got) != "keys" {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}
