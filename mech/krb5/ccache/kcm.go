package ccache

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
)

// A KCM cache is kept by a server, Heimdal's kcm or SSSD's, for the user who connects to its
// socket.
//
//	request  BE32 length, 02 00, BE16 operation, parameters
//	reply    BE32 length, BE32 code; if that is 0: BE32 code, results (the length counts from here)
//
// Parameters and results follow each other without marks: a name ends in NUL, a flag word or count
// is BE32, a UUID is 16 bytes; principals and credentials are as in version 4 of the file format.
const (
	kcmSocket = "/var/run/.heim_org.h5l.kcm-socket"

	kcmInitialize   = 4     // name, principal
	kcmDestroy      = 5     // name
	kcmStore        = 6     // name, credential
	kcmGetPrincipal = 8     // name -> principal
	kcmGetCredUUIDs = 9     // name -> UUIDs
	kcmGetCred      = 10    // name, UUID -> credential
	kcmRemoveCred   = 11    // name, flags, pattern
	kcmGetCaches    = 18    // -> UUIDs
	kcmGetCache     = 19    // UUID -> name
	kcmGetDefault   = 20    // -> name
	kcmGetCredList  = 13001 // name -> count, (BE32 length, credential)...; MIT's
	kcmReplace      = 13002 // name, clock offset, principal, count, (BE32 length, credential)...; MIT's

	// What a pattern to remove must agree in, as Heimdal numbers it, beside the names.
	kcmMatch = 1<<30 /* key type */ | 1<<28 /* exact flags */ | 1<<26 /* exact times */ | 1<<22 /* user to user */

	maxReply = 10 << 20
	kcmWait  = 10 * time.Second // for one operation, whatever the context allows

	// Codes of the server beside those of Code.
	kcmEnd      = Code(mech.MinorKRB5 + 142) // KRB5_CC_END
	kcmInternal = Code(mech.MinorKRB5 + 196) // KRB5_FCC_INTERNAL
)

// kcm is one KCM cache, or with the empty name the default one.
type kcm struct {
	socket, name string
}

func (k *kcm) Name() string { return "KCM:" + k.name }

func (k *kcm) fail(code Code, err error, text string) error {
	return &Error{Name: k.Name(), Code: code, Text: text, Err: err}
}

func (k *kcm) malformed() error { return k.fail(ErrFormat, nil, "malformed reply of the KCM server") }

// session connects for one operation, which may ask several times.
func (k *kcm) session(ctx context.Context, do func(*kcmConn) error) error {
	ctx, cancel := context.WithTimeout(ctx, kcmWait)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", k.socket)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			return k.fail(ErrNoCache, err, "no KCM server is there")
		}
		return k.fail(ErrIO, err, "")
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err = do(&kcmConn{k, conn}); err != nil && ctx.Err() != nil {
		return k.fail(ErrIO, context.Cause(ctx), "waiting for the KCM server")
	}
	return err
}

type kcmConn struct {
	*kcm
	conn net.Conn
}

// call asks for one operation. The results are the caller's; those with credentials it clears.
func (c *kcmConn) call(op uint16, params ...[]byte) ([]byte, error) {
	b := binary.BigEndian.AppendUint16([]byte{0, 0, 0, 0, 2, 0}, op)
	for _, p := range params {
		b = append(b, p...)
	}
	defer clear(b)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	if _, err := c.conn.Write(b); err != nil {
		return nil, c.fail(ErrIO, err, "")
	}
	var head [8]byte
	if _, err := io.ReadFull(c.conn, head[:]); err != nil {
		return nil, c.fail(ErrIO, err, "the KCM server does not answer")
	}
	if code := binary.BigEndian.Uint32(head[4:]); code != 0 {
		return nil, c.code(code)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 4 || n > maxReply {
		return nil, c.fail(ErrFormat, nil, fmt.Sprintf("reply of %d bytes, expected 4 to %d", n, maxReply))
	}
	// Memory as it comes: the length is only a claim.
	var reply bytes.Buffer
	if _, err := io.CopyN(&reply, c.conn, int64(n)); err != nil {
		return nil, c.fail(ErrIO, err, "the KCM server's reply is cut short")
	}
	if code := binary.BigEndian.Uint32(reply.Next(4)); code != 0 {
		return nil, c.code(code)
	}
	return reply.Bytes(), nil
}

func (c *kcmConn) code(code uint32) error {
	if Code(code) == kcmEnd {
		return c.fail(ErrNotFound, nil, "")
	}
	return c.fail(Code(code), nil, "the KCM server says so")
}

// unsupported reports whether the server may not know the operation: Heimdal says FCC_INTERNAL,
// SSSD NOSUPP when it knows the number and IO when it does not. Failures of our own have a cause.
func unsupported(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Err == nil && (e.Code == kcmInternal || e.Code == ErrIO || e.Code == ErrNoSupp)
}

func (k *kcm) param() []byte { return append([]byte(k.name), 0) }

// nameIn reads a name that a reply consists of.
func (k *kcm) nameIn(b []byte) (string, error) {
	name, _, ok := bytes.Cut(b, []byte{0})
	if !ok {
		return "", k.malformed()
	}
	return string(name), nil
}

const uuidLen = 16

func (k *kcm) uuids(b []byte) ([][]byte, error) {
	if len(b)%uuidLen != 0 {
		return nil, k.malformed()
	}
	return slices.Collect(slices.Chunk(b, uuidLen)), nil
}

func (k *kcm) Principal(ctx context.Context) (p krb5.Principal, err error) {
	err = k.session(ctx, func(c *kcmConn) error {
		p, err = c.principal()
		return err
	})
	return p, err
}

func (c *kcmConn) principal() (krb5.Principal, error) {
	b, err := c.call(kcmGetPrincipal, c.param())
	if err != nil {
		return krb5.Principal{}, err
	}
	if len(b) == 0 { // Heimdal's way of saying no
		return krb5.Principal{}, c.fail(ErrNoCache, nil, "")
	}
	p, err := readPrincipal(b)
	if err != nil {
		return p, c.fail(ErrFormat, err, "malformed reply of the KCM server")
	}
	return p, nil
}

func (k *kcm) Credentials(ctx context.Context) (creds []*krb5.Credential, err error) {
	err = k.session(ctx, func(c *kcmConn) error {
		creds, err = c.list()
		return err
	})
	return creds, err
}

func (c *kcmConn) list() ([]*krb5.Credential, error) {
	b, err := c.call(kcmGetCredList, c.param())
	if err != nil && unsupported(err) {
		return c.listSlowly()
	}
	if err != nil {
		return nil, err
	}
	defer clear(b)
	r := reader{b: b, version: version}
	var creds []*krb5.Credential
	for range r.count(4) {
		one := r.data()
		if r.err != nil {
			break
		}
		cred, err := readCredential(one)
		if err != nil {
			return creds, c.fail(ErrFormat, err, "malformed reply of the KCM server")
		}
		creds = append(creds, cred)
	}
	if r.err != nil {
		return creds, c.fail(ErrFormat, r.err, "malformed reply of the KCM server")
	}
	return creds, nil
}

func (c *kcmConn) listSlowly() ([]*krb5.Credential, error) {
	b, err := c.call(kcmGetCredUUIDs, c.param())
	if err != nil {
		return nil, err
	}
	ids, err := c.uuids(b)
	if err != nil {
		return nil, err
	}
	var creds []*krb5.Credential
	for _, id := range ids {
		b, err := c.call(kcmGetCred, c.param(), id)
		if errors.Is(err, ErrNotFound) {
			continue // removed since
		}
		if err != nil {
			return creds, err
		}
		cred, err := readCredential(b)
		clear(b)
		if err != nil {
			return creds, c.fail(ErrFormat, err, "malformed reply of the KCM server")
		}
		creds = append(creds, cred)
	}
	return creds, nil
}

func (k *kcm) Initialize(ctx context.Context, client krb5.Principal, creds ...*krb5.Credential) error {
	creds, ok := fitting(creds, time.Now().Unix())
	if !ok {
		return k.fail(ErrQuota, errFull, "")
	}
	return k.session(ctx, func(c *kcmConn) error { return c.replace(client, creds) })
}

func (c *kcmConn) replace(client krb5.Principal, creds []*krb5.Credential) error {
	principal := appendPrincipal(nil, version, client)
	b := append(make([]byte, 4), principal...) // the clock offset is none
	b = binary.BigEndian.AppendUint32(b, uint32(len(creds)))
	for _, cred := range creds {
		b = binary.BigEndian.AppendUint32(b, uint32(size(cred)))
		b = appendCredential(b, version, cred)
	}
	_, err := c.call(kcmReplace, c.param(), b)
	clear(b)
	if err == nil || !unsupported(err) {
		return err
	}
	if _, err := c.call(kcmInitialize, c.param(), principal); err != nil {
		return err
	}
	return c.store(creds)
}

func (c *kcmConn) store(creds []*krb5.Credential) error {
	for _, cred := range creds {
		b := appendCredential(nil, version, cred)
		_, err := c.call(kcmStore, c.param(), b)
		clear(b)
		if err != nil {
			return err
		}
	}
	return nil
}

// Update tells the server which entries to remove by their fields, so one that is like a new one
// goes before the new one comes. SSSD's server cannot remove entries: there the whole cache is
// replaced, by what is to stay. So it is where it would become too large: no server makes room.
func (k *kcm) Update(ctx context.Context, drop func(*krb5.Credential) bool, add ...*krb5.Credential) error {
	return k.session(ctx, func(c *kcmConn) error {
		old, err := c.list()
		defer destroy(old)
		if err != nil {
			return err
		}
		var stay, before, after []*krb5.Credential
		for _, cred := range old {
			switch {
			case drop == nil || !drop(cred):
				stay = append(stay, cred)
			case slices.ContainsFunc(add, func(a *krb5.Credential) bool { return bytes.Equal(pattern(a), pattern(cred)) }):
				before = append(before, cred)
			default:
				after = append(after, cred)
			}
		}
		all := append(stay, add...)
		fits, ok := fitting(all, time.Now().Unix())
		if !ok && len(add) > 0 {
			return c.fail(ErrQuota, errFull, "")
		}
		if len(fits) == len(all) {
			if err = c.remove(before); err == nil {
				if err := c.store(add); err != nil {
					return err
				}
				err = c.remove(after)
			}
			if err == nil || !unsupported(err) {
				return err
			}
		}
		client, err := c.principal()
		if err != nil {
			return err
		}
		return c.replace(client, fits)
	})
}

func (c *kcmConn) remove(creds []*krb5.Credential) error {
	for _, cred := range creds {
		if _, err := c.call(kcmRemoveCred, c.param(), pattern(cred)); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}

// pattern returns what names one credential to the server: a word that says which fields are there
// (client 1, server 2, key 4), and those, with the key's type alone.
func pattern(cred *krb5.Credential) []byte {
	header := uint32(1 | 2)
	if cred.KeyType != 0 {
		header |= 4
	}
	b := binary.BigEndian.AppendUint32(nil, kcmMatch)
	b = binary.BigEndian.AppendUint32(b, header)
	b = appendPrincipal(b, version, cred.Client)
	b = appendPrincipal(b, version, cred.Server)
	if cred.KeyType != 0 {
		b = appendKey(b, version, &krb5.Credential{KeyType: cred.KeyType})
	}
	return appendTimes(b, version, cred)
}

func (k *kcm) Destroy(ctx context.Context) error {
	return k.session(ctx, func(c *kcmConn) error {
		_, err := c.call(kcmDestroy, k.param())
		return err
	})
}

// kcmCollection is all the server has for us, and with a name that one cache.
type kcmCollection struct{ *kcm }

func (k kcmCollection) primary(ctx context.Context) (Cache, error) {
	if k.name != "" {
		return k.kcm, nil
	}
	var name string
	err := k.session(ctx, func(c *kcmConn) error {
		b, err := c.call(kcmGetDefault)
		if err == nil {
			name, err = k.nameIn(b)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &kcm{k.socket, name}, nil
}

func (k kcmCollection) all(ctx context.Context) ([]Cache, error) {
	first, err := k.primary(ctx)
	if err != nil || k.name != "" {
		return []Cache{first}, err
	}
	caches := []Cache{first}
	err = k.session(ctx, func(c *kcmConn) error {
		b, err := c.call(kcmGetCaches)
		if errors.Is(err, ErrNoCache) {
			return nil
		}
		if err != nil {
			return err
		}
		ids, err := k.uuids(b)
		if err != nil {
			return err
		}
		for _, id := range ids {
			b, err := c.call(kcmGetCache, id)
			if errors.Is(err, ErrNoCache) || errors.Is(err, ErrNotFound) {
				continue // destroyed since
			}
			if err != nil {
				return err
			}
			name, err := k.nameIn(b)
			if err != nil {
				return err
			}
			if "KCM:"+name != first.Name() {
				caches = append(caches, &kcm{k.socket, name})
			}
		}
		return nil
	})
	return caches, err
}
