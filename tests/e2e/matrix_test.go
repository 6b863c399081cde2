package e2e

import (
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"gssproxyd/mech"
	"gssproxyd/tests/lab"

	"github.com/jcmturner/gokrb5/v8/client"
	krb5conf "github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/credentials"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// TestInterop: the daemon, MIT's library, Heimdal's and gokrb5, each as initiator with each as
// acceptor, for every enctype they have in common. Pairs without the daemon are there to show whose
// fault a failure is.
func TestInterop(t *testing.T) {
	r := realm(t)
	lab.NeedPrograms(t, lab.HeimdalDir)
	const rc4 = 23
	made(t, r.RandKey("e23/"+lab.Host, lab.EnctypeName(rc4)))
	common := append([]int{rc4}, enctypes...)
	var principals []string
	for _, n := range common {
		principals = append(principals, fmt.Sprintf("e%d/%s", n, lab.Host))
	}
	keys, err := r.Keytab("interop.keytab", principals...)
	check(t, err)
	alices, err := r.Keytab("alice.keytab", "alice")
	check(t, err)
	conf, err := r.Krb5Conf("interop.conf", "allow_rc4 = true", "allow_weak_crypto = true")
	check(t, err)
	env, err := r.KinitEnv([]string{"KRB5_CONFIG=" + conf}, "alice", "alice")
	check(t, err)
	// Heimdal takes nobody's ccache but its user's own.
	tickets, err := os.ReadFile(env[len(env)-1][len("KRB5CCNAME=FILE:"):])
	check(t, err)
	heimdals := r.Path("cc-heimdal")
	check(t, os.WriteFile(heimdals, tickets, 0o600))
	heimdal := func(t *testing.T, u lab.User, env ...string) *lab.Tool {
		g, err := r.HeimdalTool(u, env...)
		check(t, err)
		t.Cleanup(func() { g.Close() })
		return g
	}
	own := []string{"KRB5_CONFIG=" + conf, "KRB5_KTNAME=FILE:" + keys, "KRB5RCACHENAME=none:"}

	overDaemons(t, func(t *testing.T, kind string) {
		d := daemon(t, kind, lab.Options{Krb5Conf: conf, Keytab: keys, RCache: "none:", Config: config(
			svc{"init", lab.Nobody.UID, []string{"cred_store = client_keytab:" + alices, "cred_usage = initiate"}},
			svc{"accept", 0, []string{"cred_store = keytab:" + keys, "cred_usage = accept"}},
		)})
		plugin := append(d.PluginEnv(), "KRB5_CONFIG="+conf)
		initiators := []struct {
			name string
			tool *lab.Tool
		}{
			{kind, tool(t, lab.Nobody, plugin...)},
			{"MIT", tool(t, lab.Nobody, env...)},
			{"Heimdal", heimdal(t, lab.Root, "KRB5_CONFIG="+conf, "KRB5CCNAME=FILE:"+heimdals)},
		}
		acceptors := []struct {
			name string
			tool *lab.Tool
		}{
			{kind, tool(t, lab.Root, plugin...)},
			{"MIT", tool(t, lab.Root, own...)},
			{"Heimdal", heimdal(t, lab.Root, own...)},
		}
		for _, a := range acceptors {
			check(t, a.tool.Acquire(""))
		}
		for _, n := range common {
			for _, a := range acceptors {
				for _, i := range initiators {
					t.Run(fmt.Sprintf("%d/%s to %s", n, i.name, a.name), func(t *testing.T) {
						for _, flags := range []uint32{lab.Usual | lab.Mutual, lab.Usual, lab.Conf | lab.Integ | lab.Mutual} {
							if i.name == "Heimdal" && flags&lab.Mutual == 0 {
								flags &^= lab.Sequence | lab.Replay // it does not know where the acceptor's numbers begin, and sees a gap
							}
							bindings := []byte("lab")
							if flags&lab.Sequence == 0 {
								bindings = nil
							}
							id, token, err := i.tool.Init(serviceOf(n), flags, bindings)
							check(t, err)
							b, err := a.tool.Accept(token, bindings)
							check(t, err)
							if b.Client != "alice@"+lab.Name || b.Flags&(lab.Usual|lab.Mutual) != flags {
								t.Errorf("accepted %s with flags %#x, want alice with %#x", b.Client, b.Flags, flags)
							}
							if flags&lab.Mutual != 0 {
								complete, _, err := i.tool.Step(id, b.Token)
								if err != nil || !complete {
									t.Fatalf("complete %v, %v", complete, err)
								}
							}
							converse := lab.Converse
							if flags&lab.Mutual == 0 { // without a subkey of the acceptor's Heimdal has no pseudo-random function
								converse = lab.Messages
							}
							check(t, converse(lab.End{Tool: i.tool, ID: id}, lab.End{Tool: a.tool, ID: b.ID}))
							check(t, errors.Join(i.tool.Delete(id), a.tool.Delete(b.ID)))
						}
					})
				}
				t.Run(fmt.Sprintf("%d/gokrb5 to %s", n, a.name), func(t *testing.T) {
					check(t, gokrb5To(a.tool, n, conf, env[len(env)-1][len("KRB5CCNAME=FILE:"):]))
				})
			}
		}
	})
}

// gokrb5To establishes contexts from gokrb5, which makes an AP-REQ and leaves the rest to its
// users, to an acceptor.
func gokrb5To(acceptor *lab.Tool, enctype int, conf, ccache string) error {
	cfg, err := krb5conf.Load(conf)
	if err != nil {
		return err
	}
	cfg.LibDefaults.DefaultTGSEnctypeIDs = []int32{int32(enctype)}
	cfg.LibDefaults.PermittedEnctypeIDs = []int32{17, 18, 19, 20, 23}
	cc, err := credentials.LoadCCache(ccache)
	if err != nil {
		return err
	}
	cl, err := client.NewFromCCache(cc, cfg, client.DisablePAFXFAST(true))
	if err != nil {
		return err
	}
	defer cl.Destroy()
	ticket, key, err := cl.GetServiceTicket(strings.Replace(serviceOf(enctype), "@", "/", 1))
	if err != nil {
		return err
	}
	if key.KeyType != int32(enctype) {
		return fmt.Errorf("a session key of type %d", key.KeyType)
	}
	for _, mutual := range []bool{true, false} {
		flags := uint32(lab.Conf | lab.Integ)
		if mutual {
			flags |= lab.Mutual
		}
		auth, err := types.NewAuthenticator(cl.Credentials.Domain(), cl.Credentials.CName())
		if err != nil {
			return err
		}
		sum := append([]byte{16, 19: 0}, make([]byte, 4)...) // RFC 4121 4.1.1: no bindings
		binary.LittleEndian.PutUint32(sum[20:], flags)
		auth.Cksum = types.Checksum{CksumType: 0x8003, Checksum: sum}
		if auth.SeqNumber, err = 4711, auth.GenerateSeqNumberAndSubKey(key.KeyType, len(key.KeyValue)); err != nil {
			return err
		}
		req, err := messages.NewAPReq(ticket, key, auth)
		if err != nil {
			return err
		}
		if mutual {
			types.SetFlag(&req.APOptions, 2) // RFC 4120 5.5.1: mutual-required
		}
		token, err := req.Marshal()
		if err != nil {
			return err
		}
		token, err = asn1.Marshal(asn1.RawValue{Class: 1, IsCompound: true, Bytes: slices.Concat([]byte("\x06\x09"), []byte(mech.KRB5), []byte{1, 0}, token)})
		if err != nil {
			return err
		}
		a, err := acceptor.Accept(token, nil)
		if err != nil {
			return err
		}
		if a.Client != "alice@"+lab.Name || a.Flags&(lab.Usual|lab.Mutual) != flags {
			return fmt.Errorf("accepted %s with flags %#x", a.Client, a.Flags)
		}
		if !mutual {
			if err := gokrb5Messages(acceptor, a.ID, auth); err != nil {
				return err
			}
			continue
		}
		var frame asn1.RawValue
		if _, err := asn1.Unmarshal(a.Token, &frame); err != nil {
			return err
		}
		var rep messages.APRep
		if err := rep.Unmarshal(frame.Bytes[13:]); err != nil { // an OID of 9 octets and two of the token's id before it
			return err
		}
		plain, err := crypto.DecryptEncPart(rep.EncPart, key, keyusage.AP_REP_ENCPART)
		if err != nil {
			return err
		}
		var part messages.EncAPRepPart
		if err := part.Unmarshal(plain); err != nil {
			return err
		}
		if part.Cusec != auth.Cusec || part.CTime.Unix() != auth.CTime.Unix() {
			return fmt.Errorf("the AP-REP answers %v.%d, sent %v.%d", part.CTime, part.Cusec, auth.CTime, auth.Cusec)
		}
	}
	return nil
}

// gokrb5Messages has gokrb5 and the acceptor send each other a MIC.
func gokrb5Messages(acceptor *lab.Tool, id int, auth types.Authenticator) error {
	key := auth.SubKey
	if key.KeyType == 23 {
		return nil // gokrb5 has RFC 4121's tokens only
	}
	msg := []byte("a message of gokrb5's")
	mic := gssapi.MICToken{SndSeqNum: uint64(auth.SeqNumber), Payload: msg}
	if err := mic.SetChecksum(key, keyusage.GSSAPI_INITIATOR_SIGN); err != nil {
		return err
	}
	b, err := mic.Marshal()
	if err != nil {
		return err
	}
	if major, err := acceptor.Verify(id, msg, b); err != nil || major != 0 {
		return fmt.Errorf("verifying gokrb5's MIC: %#x, %w", major, err)
	}
	if b, err = acceptor.MIC(id, msg); err != nil {
		return err
	}
	if err := mic.Unmarshal(b, true); err != nil {
		return err
	}
	mic.Payload = msg
	ok, err := mic.Verify(key, keyusage.GSSAPI_ACCEPTOR_SIGN)
	if err != nil || !ok {
		return fmt.Errorf("gokrb5 verifying the acceptor's MIC: %v, %w", ok, err)
	}
	return nil
}
