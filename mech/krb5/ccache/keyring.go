package ccache

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/mech/krb5"
)

// A KEYRING collection is a keyring of the kernel's that is linked from an anchor; the name is
// KEYRING:anchor:collection:cache, without the cache for the primary one, without the anchor for
// the session's.
//
//	anchor      linked from                        collection's keyring
//	persistent  persistent keyring of a user id    _krb (the collection is the user id, or empty for the own)
//	user        keyring of the effective user      _krb_COLLECTION
//	session     keyring of the session             _krb_COLLECTION
//	process     keyring of the process             _krb_COLLECTION
//	thread      keyring of the thread              _krb_COLLECTION
//	legacy      as session; the first cache is linked from the session too, for programs before collections
//
// In it are a keyring for each cache and the key krb_ccache:primary with a format number and the
// name of the primary one. In a cache's keyring are the key __krb5_princ__ with the principal, and
// for each credential a key with the server's name. Contents are in version 4 of the file format.
const (
	primaryKey   = "krb_ccache:primary"
	principalKey = "__krb5_princ__"
	offsetsKey   = "__krb5_time_offsets__"
)

// keyringCollection is a collection of the kernel's, and with a cache name that one cache.
type keyringCollection struct {
	k                  *Keyrings
	anchor, name, only string
}

func (k *Keyrings) collection(residual string) (collection, error) {
	c := keyringCollection{k: k, anchor: "legacy", name: residual}
	if anchor, rest, ok := strings.Cut(residual, ":"); ok {
		c.anchor = anchor
		c.name, c.only, _ = strings.Cut(rest, ":")
	}
	switch c.anchor {
	case "persistent":
		if _, err := c.uid(); err != nil {
			return nil, &Error{Name: "KEYRING:" + residual, Code: ErrBadName, Text: "expected a user id after persistent"}
		}
	case "user", "session", "process", "thread", "legacy":
	default:
		return nil, &Error{Name: "KEYRING:" + residual, Code: ErrBadName,
			Text: fmt.Sprintf("expected persistent, user, session, process, thread or legacy as anchor, not %q", c.anchor)}
	}
	if c.only != "" {
		return single{c.cache(c.only)}, nil
	}
	return c, nil
}

func (c keyringCollection) uid() (int, error) {
	if c.name == "" {
		return os.Geteuid(), nil
	}
	n, err := strconv.ParseUint(c.name, 10, 31)
	return int(n), err
}

func (c keyringCollection) fullName() string { return "KEYRING:" + c.anchor + ":" + c.name }

func (c keyringCollection) cache(name string) *keyringCache { return &keyringCache{c, name} }

// parent returns the keyring the collection is linked from, the keyring to link it to for the
// rights of a possessor (0 for none), and the name of the collection's keyring.
func (c keyringCollection) parent() (id, possess int, name string, err error) {
	name = "_krb_" + c.name
	switch c.anchor {
	case "persistent":
		uid, err := c.uid()
		if err != nil {
			return 0, 0, "", err
		}
		id, err := unix.KeyctlInt(unix.KEYCTL_GET_PERSISTENT, uid, unix.KEY_SPEC_PROCESS_KEYRING, 0, 0)
		if err == unix.EOPNOTSUPP && uid == os.Geteuid() {
			id, err = unix.KEY_SPEC_USER_KEYRING, nil
		}
		return id, unix.KEY_SPEC_PROCESS_KEYRING, "_krb", os.NewSyscallError("keyctl_get_persistent", err)
	case "user":
		return unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_PROCESS_KEYRING, name, nil
	case "process":
		return unix.KEY_SPEC_PROCESS_KEYRING, 0, name, nil
	case "thread":
		return unix.KEY_SPEC_THREAD_KEYRING, 0, name, nil
	}
	return session(), 0, name, nil
}

// keyring returns the collection's keyring; ENOKEY if there is none and it is not to be made.
func (c keyringCollection) keyring(create bool) (int, error) {
	parent, possess, name, err := c.parent()
	if err != nil {
		return 0, err
	}
	id, err := unix.KeyctlSearch(parent, "keyring", name, possess)
	if err == nil || !create || !errors.Is(err, unix.ENOKEY) {
		return id, os.NewSyscallError("keyctl_search", err)
	}
	if possess == 0 {
		return addKey("keyring", name, nil, parent)
	}
	if id, err = addKey("keyring", name, nil, possess); err != nil {
		return 0, err
	}
	_, err = unix.KeyctlInt(unix.KEYCTL_LINK, id, parent, 0, 0)
	return id, os.NewSyscallError("keyctl_link", err)
}

// primaryName returns the name of the primary cache of the collection's keyring, which is 0 if
// there is none.
func (c keyringCollection) primaryName(ring int) (string, error) {
	first := c.name
	if first == "" {
		first = "tkt" // a key must have a name
	}
	if ring == 0 {
		return first, nil
	}
	id, err := search(ring, "user", primaryKey)
	if errors.Is(err, unix.ENOKEY) {
		return first, nil
	}
	if err != nil {
		return "", err
	}
	b, err := readKey(id)
	if err != nil {
		return "", err
	}
	bad := &Error{Name: c.fullName(), Code: ErrFormat, Text: "the key " + primaryKey + " is damaged"}
	if len(b) < 8 {
		return "", bad
	}
	if v := binary.BigEndian.Uint32(b); v != 1 {
		return "", &Error{Name: c.fullName(), Code: ErrVersion, Text: fmt.Sprintf("collection of version %d, expected 1", v)}
	}
	n := binary.BigEndian.Uint32(b[4:])
	if uint64(n) > uint64(len(b)-8) || n == 0 {
		return "", bad
	}
	return string(b[8 : 8+n]), nil
}

func setPrimary(ring int, name string) error {
	b := binary.BigEndian.AppendUint32(nil, 1)
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	_, err := addKey("user", primaryKey, append(b, name...), ring)
	return err
}

func (c keyringCollection) primary(ctx context.Context) (Cache, error) {
	var name string
	err := c.k.do(ctx, c.fullName(), func() error {
		ring, err := c.keyring(false)
		if err != nil && !errors.Is(err, unix.ENOKEY) {
			return err
		}
		if err != nil {
			ring = 0
		}
		name, err = c.primaryName(ring)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.cache(name), nil
}

func (c keyringCollection) all(ctx context.Context) ([]Cache, error) {
	var caches []Cache
	err := c.k.do(ctx, c.fullName(), func() error {
		ring, err := c.keyring(false)
		if errors.Is(err, unix.ENOKEY) {
			return nil
		}
		if err != nil {
			return err
		}
		first, err := c.primaryName(ring)
		if err != nil {
			return err
		}
		caches = append(caches, c.cache(first))
		ids, err := keys(ring)
		if err != nil {
			return err
		}
		for _, id := range ids {
			about, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, id)
			if err != nil {
				continue // gone, or none of ours
			}
			// type;uid;gid;permissions;name
			if f := strings.SplitN(about, ";", 5); len(f) == 5 && f[0] == "keyring" && f[4] != first {
				caches = append(caches, c.cache(f[4]))
			}
		}
		return nil
	})
	return caches, err
}

// keyringCache is one KEYRING cache.
type keyringCache struct {
	keyringCollection
	name string
}

func (c *keyringCache) Name() string { return c.fullName() + ":" + c.name }

// ring returns the cache's keyring; ENOKEY if there is none.
func (c *keyringCache) ring() (int, error) {
	col, err := c.keyring(false)
	if err != nil {
		return 0, err
	}
	return search(col, "keyring", c.name)
}

func (c *keyringCache) Principal(ctx context.Context) (p krb5.Principal, err error) {
	err = c.k.do(ctx, c.Name(), func() error {
		ring, err := c.ring()
		if err == nil {
			p, err = c.principalIn(ring)
		}
		return err
	})
	return p, err
}

func (c *keyringCache) principalIn(ring int) (krb5.Principal, error) {
	id, err := search(ring, "user", principalKey)
	if err != nil {
		return krb5.Principal{}, err
	}
	b, err := readKey(id)
	if err != nil {
		return krb5.Principal{}, err
	}
	p, err := readPrincipal(b)
	if err != nil {
		return p, &Error{Name: c.Name(), Code: ErrFormat, Text: "the principal's key is damaged", Err: err}
	}
	return p, nil
}

// entries returns the credentials and their keys. Those before damage come with the error.
func (c *keyringCache) entries(ring int) (creds []*krb5.Credential, ids []int, err error) {
	// Not by name: a credential may be of a server that is called as these keys are.
	var special [2]int
	for i, name := range []string{principalKey, offsetsKey} {
		id, err := search(ring, "user", name)
		switch {
		case err == nil:
			special[i] = id
		case !errors.Is(err, unix.ENOKEY):
			return nil, nil, err
		case name == principalKey:
			return nil, nil, err
		}
	}
	all, err := keys(ring)
	if err != nil {
		return nil, nil, err
	}
	for _, id := range all {
		if id == special[0] || id == special[1] {
			continue
		}
		b, err := readKey(id)
		if errors.Is(err, unix.ENOKEY) || errors.Is(err, unix.EKEYEXPIRED) || errors.Is(err, unix.EKEYREVOKED) || errors.Is(err, unix.EACCES) {
			continue // expired or removed since
		}
		if err != nil {
			return creds, ids, err
		}
		cred, err := readCredential(b)
		clear(b)
		if err != nil {
			return creds, ids, &Error{Name: c.Name(), Code: ErrFormat, Text: "a credential's key is damaged; get new credentials", Err: err}
		}
		creds, ids = append(creds, cred), append(ids, id)
	}
	return creds, ids, nil
}

func (c *keyringCache) Credentials(ctx context.Context) ([]*krb5.Credential, error) {
	var creds []*krb5.Credential
	return creds, c.k.do(ctx, c.Name(), func() error {
		ring, err := c.ring()
		if err != nil {
			return err
		}
		creds, _, err = c.entries(ring)
		return err
	})
}

// add adds a credential's key, which replaces the one for the same server, and returns it.
func (c *keyringCache) add(ring int, cred *krb5.Credential) (int, error) {
	b := appendCredential(nil, version, cred)
	defer clear(b)
	name := cred.Server.String()
	id, err := 0, error(unix.EINVAL)
	if c.anchor != "legacy" { // where programs that know no big_key look
		id, err = addKey("big_key", name, b, ring)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		id, err = addKey("user", name, b, ring)
	}
	if errors.Is(err, unix.EINVAL) {
		return 0, &Error{Name: c.Name(), Code: ErrIO, Err: err,
			Text: fmt.Sprintf("the kernel has no key for a credential of %d bytes with a name of %d", len(b), len(name))}
	}
	if err != nil {
		return 0, err
	}
	if left := int64(cred.EndTime) - time.Now().Unix(); left > 0 {
		if _, err := unix.KeyctlInt(unix.KEYCTL_SET_TIMEOUT, id, int(left), 0, 0); err != nil {
			return id, os.NewSyscallError("keyctl_set_timeout", err)
		}
	}
	return id, nil
}

// expire has the kernel drop the cache when its last credential ends. A failure costs memory only.
func (c *keyringCache) expire(ring int, creds []*krb5.Credential) {
	last := uint32(0)
	for _, cred := range creds {
		last = max(last, cred.EndTime)
	}
	if last == 0 {
		return
	}
	left := max(1, int64(last)-time.Now().Unix()) // 0 would mean for ever
	unix.KeyctlInt(unix.KEYCTL_SET_TIMEOUT, ring, int(left), 0, 0)
}

// Initialize keeps the keyring, as others may have it open, and changes what is in it. For a moment
// others see less than all of it, as when MIT's library does this.
func (c *keyringCache) Initialize(ctx context.Context, client krb5.Principal, creds ...*krb5.Credential) error {
	creds, ok := fitting(creds, time.Now().Unix())
	if !ok {
		return &Error{Name: c.Name(), Code: ErrQuota, Err: errFull}
	}
	return c.k.do(ctx, c.Name(), func() error {
		col, err := c.keyring(true)
		if err != nil {
			return err
		}
		if _, err := search(col, "user", primaryKey); errors.Is(err, unix.ENOKEY) {
			name, err := c.primaryName(0)
			if err == nil {
				err = setPrimary(col, name)
			}
			if err != nil {
				return err
			}
		}
		ring, err := search(col, "keyring", c.name)
		made := errors.Is(err, unix.ENOKEY)
		if made {
			ring, err = addKey("keyring", c.name, nil, col)
		}
		if err != nil {
			return err
		}
		if made {
			if err = c.fill(ring, client, creds); err != nil {
				unix.KeyctlInt(unix.KEYCTL_UNLINK, ring, col, 0, 0)
			}
		} else {
			err = c.refill(ring, client, creds)
		}
		if err != nil {
			return err
		}
		if c.anchor == "legacy" && c.name == c.keyringCollection.name {
			_, err = unix.KeyctlInt(unix.KEYCTL_LINK, ring, session(), 0, 0)
		}
		return os.NewSyscallError("keyctl_link", err)
	})
}

func (c *keyringCache) fill(ring int, client krb5.Principal, creds []*krb5.Credential) error {
	if _, err := addKey("user", principalKey, appendPrincipal(nil, version, client), ring); err != nil {
		return err
	}
	for _, cred := range creds {
		if _, err := c.add(ring, cred); err != nil {
			return err
		}
	}
	c.expire(ring, creds)
	return nil
}

// refill changes what is in a keyring, and puts back what was there if the new does not fit.
func (c *keyringCache) refill(ring int, client krb5.Principal, creds []*krb5.Credential) error {
	was, err := c.principalIn(ring)
	initialized := err == nil
	old, _, _ := c.entries(ring) // of a damaged cache what can be read
	defer destroy(old)
	if _, err := unix.KeyctlInt(unix.KEYCTL_CLEAR, ring, 0, 0, 0); err != nil {
		return os.NewSyscallError("keyctl_clear", err)
	}
	if err = c.fillCleared(ring, client, creds, 100*time.Millisecond); err == nil {
		return nil
	}
	unix.KeyctlInt(unix.KEYCTL_CLEAR, ring, 0, 0, 0)
	if initialized {
		if e := c.fillCleared(ring, was, old, 2*time.Second); e != nil { // it fitted before
			return errors.Join(err, e)
		}
	}
	return err
}

// fillCleared is fill in a keyring just cleared, tried again for as long as wait: the kernel takes
// a while to count the keys that were in it as gone.
func (c *keyringCache) fillCleared(ring int, client krb5.Principal, creds []*krb5.Credential, wait time.Duration) error {
	for deadline := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		err := c.fill(ring, client, creds)
		if !errors.Is(err, unix.EDQUOT) || time.Now().After(deadline) {
			return err
		}
	}
}

// Update leaves room-making to the kernel's time limits, and only what is too much for one cache goes
// as in a file.
func (c *keyringCache) Update(ctx context.Context, drop func(*krb5.Credential) bool, add ...*krb5.Credential) error {
	return c.k.do(ctx, c.Name(), func() error {
		ring, err := c.ring()
		if err != nil {
			return err
		}
		old, ids, err := c.entries(ring)
		defer destroy(old)
		if err != nil && drop != nil {
			return err
		}
		var stay []*krb5.Credential
		for _, cred := range old {
			replaced := func(a *krb5.Credential) bool { return a.Server.String() == cred.Server.String() }
			if (drop == nil || !drop(cred)) && !slices.ContainsFunc(add, replaced) {
				stay = append(stay, cred)
			}
		}
		// Keys are in no order.
		slices.SortStableFunc(stay, func(a, b *krb5.Credential) int { return cmp.Compare(a.StartTime, b.StartTime) })
		stay, ok := fitting(append(stay, add...), time.Now().Unix())
		if !ok && len(add) > 0 {
			return &Error{Name: c.Name(), Code: ErrQuota, Err: errFull}
		}
		added := make(map[int]bool)
		for _, cred := range add {
			id, err := c.add(ring, cred)
			if err != nil {
				return err
			}
			added[id] = true
		}
		for i, cred := range old {
			if added[ids[i]] || slices.Contains(stay, cred) {
				continue
			}
			if _, err := unix.KeyctlInt(unix.KEYCTL_UNLINK, ids[i], ring, 0, 0); err != nil && !errors.Is(err, unix.ENOENT) {
				return os.NewSyscallError("keyctl_unlink", err)
			}
		}
		c.expire(ring, append(old, add...))
		return nil
	})
}

func (c *keyringCache) Destroy(ctx context.Context) error {
	return c.k.do(ctx, c.Name(), func() error {
		col, err := c.keyring(false)
		if err != nil {
			return err
		}
		ring, err := search(col, "keyring", c.name)
		if err != nil {
			return err
		}
		_, err = unix.KeyctlInt(unix.KEYCTL_CLEAR, ring, 0, 0, 0)
		_, err2 := unix.KeyctlInt(unix.KEYCTL_UNLINK, ring, col, 0, 0)
		if c.anchor == "legacy" && c.name == c.keyringCollection.name {
			unix.KeyctlInt(unix.KEYCTL_UNLINK, ring, session(), 0, 0)
		}
		return os.NewSyscallError("keyctl", errors.Join(err, err2))
	})
}
