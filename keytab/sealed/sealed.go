// Package sealed seals things to one host and opens them there: keytabs that are kept anywhere, in a
// backup or in Git, and are of no use to who copies them.
//
// The format is that of age (https://age-encryption.org/v1) with X25519 recipients, so that the tools
// age and age-keygen make and open such files too. It says to whom something is sealed and not by
// whom: anybody who knows the recipient can seal. Who believes what was opened has another reason
// to: the file's place, or a signature.
package sealed

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"

	"gssproxyd/mech/krb5/etype"
)

// MaxSize is how many bytes a sealed file may have.
const MaxSize = 16 << 20

// maxRecipients is how many of a file's recipients are tried: each costs a multiplication on the
// curve.
const maxRecipients = 1000

// intro is what an age file begins with, unless it is armored.
const intro = "age-encryption.org/v1\n"

// Identity is the secret that opens what is sealed to its recipient. It prints as "[redacted]".
type Identity struct {
	etype.Redacted
	secret *age.X25519Identity
	file   string
}

// Recipient returns whom to seal to, so that this identity opens it. That is no secret.
func (i *Identity) Recipient() *Recipient { return &Recipient{i.secret.Recipient()} }

// File returns the path of the file that the identity is kept in.
func (i *Identity) File() string { return i.file }

// Open returns what is sealed in content, an age file, binary or armored, of at most MaxSize bytes;
// the caller zeroes it. An error says whether that is no age file, is sealed to others only, or was
// cut off or changed, and has nothing of the content in it.
//
// All that is in memory besides is the garbage collector's: age has no way to clear the last 64 KiB
// that it has opened.
func (i *Identity) Open(content []byte) (etype.Secret, error) {
	var src io.Reader = bytes.NewReader(content)
	switch {
	case len(content) > MaxSize:
		return nil, fmt.Errorf("it has %d bytes; at most %d are opened", len(content), MaxSize)
	case bytes.HasPrefix(content, []byte(intro)):
	case bytes.HasPrefix(bytes.TrimLeft(content, " \t\r\n"), []byte(armor.Header)):
		src = armor.NewReader(src)
	default:
		return nil, fmt.Errorf("it is no age file, which begins with %q or %q", strings.TrimSpace(intro), armor.Header)
	}
	u := unwrapper{secret: i.secret}
	defer func() { clear(u.key) }()
	r, err := age.Decrypt(src, &u)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, fmt.Errorf("it is not sealed to this host, whose recipient is %v: seal it again, to that one too", i.Recipient())
	}
	if errors.Is(err, errRecipients) {
		return nil, err
	}
	if err != nil {
		return nil, errChanged
	}
	plain := make(etype.Secret, len(content)) // of which there is always less
	n, err := readAll(r, plain)
	if err != nil {
		plain.Zero()
		return nil, errChanged
	}
	return plain[:n:n], nil
}

var (
	errChanged    = errors.New("it was cut off or changed since it was sealed; put a good copy there")
	errRecipients = fmt.Errorf("it is sealed to more than %d recipients", maxRecipients)
)

// readAll reads to the end of r, which has less than b has room for.
func readAll(r io.Reader, b []byte) (n int, err error) {
	for err == nil {
		if n == len(b) {
			return n, io.ErrShortBuffer
		}
		var more int
		more, err = r.Read(b[n:])
		n += more
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// unwrapper opens one file, and remembers the file's key to have it cleared.
type unwrapper struct {
	secret *age.X25519Identity
	key    []byte
}

// Unwrap implements [age.Identity].
func (u *unwrapper) Unwrap(stanzas []*age.Stanza) (key []byte, err error) {
	if len(stanzas) > maxRecipients {
		return nil, errRecipients
	}
	u.key, err = u.secret.Unwrap(stanzas)
	return u.key, err
}

// Recipient is somebody to seal to.
type Recipient struct{ public *age.X25519Recipient }

// ParseRecipient reads a recipient as String and age-keygen -y write them.
func ParseRecipient(s string) (*Recipient, error) {
	if strings.Contains(strings.ToUpper(s), "SECRET-KEY") {
		return nil, errors.New("that is an identity, which is to be kept secret; its recipient is expected, which age-keygen -y prints")
	}
	r, err := age.ParseX25519Recipient(s)
	if err != nil {
		return nil, fmt.Errorf("%q is no X25519 recipient of age, as gssproxyd keytab recipient and age-keygen -y print it (age1...)", s)
	}
	return &Recipient{r}, nil
}

// String returns the recipient as text, "age1...".
func (r *Recipient) String() string { return r.public.String() }

// Seal returns an age file, not armored, that each of the recipients' identities opens, and nobody
// else's. What it needs of plain in memory besides is the garbage collector's.
func Seal(plain []byte, to ...*Recipient) ([]byte, error) {
	all := make([]age.Recipient, len(to))
	for i, r := range to {
		all[i] = r.public
	}
	var b bytes.Buffer
	w, err := age.Encrypt(&b, all...)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot be sealed: %w", err)
	}
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("sealed it would have %d bytes; at most %d can be opened", b.Len(), MaxSize)
	}
	return b.Bytes(), nil
}
