package creds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/mech"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/kdc"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
)

// Outcome is how a step of a self-test ended.
type Outcome string

// Outcomes.
const (
	OK      Outcome = "ok"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped"
)

// Step is a step of a self-test.
type Step struct {
	Name    string
	Outcome Outcome
	Text    string
	Reason  reason.ID // of a failure, where one fits
}

// Limits of a self-test.
const (
	selfTestTimeout    = 30 * time.Second
	selfTestPrincipals = 16 // that a ticket is asked for
	selfTestClients    = 4  // that are tried to get tickets as
)

// SelfTest does for a service, as its own user, what its callers have done for them: it reads the
// keys, gets tickets from the KDC with them, and accepts one for each principal of its keytab. What
// callers are permitted is no matter here. It ends where nothing further makes sense.
func (s *Service) SelfTest(ctx context.Context) []Step {
	ctx, cancel := context.WithTimeout(ctx, selfTestTimeout)
	defer cancel()
	t := &selfTest{
		ctx:    ctx,
		caller: Caller{Peer: &peer.Info{UID: s.EUID}, Service: s, Now: s.log.Now(), Context: ctx},
		// One that remembers nothing: neither that something was refused before, nor how far the clocks
		// were apart.
		kdc: &kdc.Client{Conf: s.Krb5, Now: s.log.Now, Timeout: kdcTimeout, Admission: s.kdc.Admission, Trace: s.log.Trace},
	}
	defer t.caller.Done()
	t.run()
	return t.steps
}

type selfTest struct {
	ctx    context.Context
	caller Caller
	kdc    *kdc.Client
	steps  []Step
	offset time.Duration // of the KDC's clock
}

func (t *selfTest) say(name string, outcome Outcome, format string, args ...any) {
	t.steps = append(t.steps, Step{Name: name, Outcome: outcome, Text: fmt.Sprintf(format, args...)})
}

func (t *selfTest) fail(name string, err error) {
	step := Step{Name: name, Outcome: Failed, Text: err.Error()}
	if e, ok := errors.AsType[*mech.Error](err); ok {
		step.Text, step.Reason = e.MinorString(), e.Reason
	}
	t.steps = append(t.steps, step)
}

func (t *selfTest) run() {
	c, svc := &t.caller, t.caller.Service
	st, err := c.store(svc.EUID)
	if err != nil {
		t.fail("cred_store", err)
		return
	}
	accepts, initiates := svc.CredUsage != conf.UsageInitiate, svc.CredUsage != conf.UsageAccept
	var acceptor Acceptor
	if accepts {
		if accepts = t.keys("keytab", st.keytab); accepts {
			err := c.setUp(&acceptor, svc.EUID, nil)
			if err == nil {
				_, err = acceptor.Check(acceptor.keytab.Ring().All())
			}
			if err != nil {
				t.fail("keytab", withKeytab(err, st.keytab))
				accepts = false
			}
		}
	}
	keys, needed := t.initiators(st)
	var cr *Credential
	switch {
	case initiates && needed && keys == nil && st.ccache == "":
		t.fail("kdc", noCredentials(st, nil, svc.Krb5Principal))
	case initiates && needed && keys == nil:
		t.say("kdc", Skipped, "there is no keytab to initiate with: it is done with tickets in %s, which are not looked at", st.ccache)
	case initiates && needed:
		if cr = t.initiate(st, keys); cr == nil {
			return
		}
	}
	if !accepts {
		return
	}
	if cr == nil {
		if cr = t.asItself(st.keytab); cr == nil {
			return
		}
	}
	defer cr.Drop(t.ctx)
	t.accept(&acceptor, cr)
}

// initiators returns the keytab that the service initiates with where it names nobody, nil if that is
// done with a cache that somebody fills. What is there to accept with is tried for that, too, but no
// matter where nothing says that it is used so.
func (t *selfTest) initiators(st *store) (keys *keytab.Keytab, needed bool) {
	svc := t.caller.Service
	keys = st.clientKeytab
	own := svc.Trusted || svc.Impersonate || svc.Krb5Principal != "" || svc.CredUsage == conf.UsageInitiate
	if st.keytabNamed && own && (keys == nil || svc.Trusted || svc.Impersonate || !t.hasConfigured(keys) && t.hasConfigured(st.keytab)) {
		return st.keytab, true
	}
	if keys != nil && keys.Ring().Len() == 0 && st.ccache != "" {
		keys = nil // one that may come
	}
	return keys, keys != nil || st.ccache != "" || own
}

// hasConfigured reports whether a keytab has the principal that the service is to be, if there is one
// that it is to be.
func (t *selfTest) hasConfigured(k *keytab.Keytab) bool {
	if t.caller.Service.Krb5Principal == "" {
		return true
	}
	p, err := t.caller.Principal(*t.caller.configuredName())
	return err == nil && has(k, p)
}

// keys looks at a keytab, and reports whether there are keys to go on with.
func (t *selfTest) keys(name string, k *keytab.Keytab) bool {
	if k == nil {
		t.say(name, Failed, "cred_store names none")
		t.steps[len(t.steps)-1].Reason = reason.CredStore
		return false
	}
	ring, wrong := k.Ring(), k.Err()
	switch {
	case ring.Len() == 0:
		t.say(name, Failed, "%s", noKeys(k))
	case wrong != nil:
		t.say(name, Failed, "%s", contents(k))
	default:
		t.say(name, OK, "%s", contents(k))
		return true
	}
	t.steps[len(t.steps)-1].Reason = reason.NoKeytab
	return ring.Len() > 0
}

// initiate gets a ticket-granting ticket as the service would for itself.
func (t *selfTest) initiate(st *store, keys *keytab.Keytab) *Credential {
	c := &t.caller
	if (keys != st.keytab || c.Service.CredUsage == conf.UsageInitiate) && !t.keys("keytab to initiate with", keys) {
		return nil
	}
	if !t.hasConfigured(keys) {
		t.fail("kdc", noCredentials(st, keys, c.Service.Krb5Principal))
		return nil
	}
	client, err := krb5.ParsePrincipal(c.firstOf(keys), "")
	var cr *Credential
	if err == nil {
		cr, err = t.login(client, keys)
	}
	if err != nil {
		t.fail("kdc", err)
		return nil
	}
	return cr
}

// asItself gets a ticket-granting ticket with a key that is there to accept with, to ask for tickets
// of the service with: that of a service principal is often a client's too. Where it is not, that is
// no fault.
func (t *selfTest) asItself(keys *keytab.Keytab) *Credential {
	var refusals []string
	for _, name := range principalsOf(keys.Ring(), selfTestClients) {
		client, err := krb5.ParsePrincipal(name, "")
		if err != nil {
			continue
		}
		cr, err := t.login(client, keys)
		if err == nil {
			return cr
		}
		e, _ := errors.AsType[*mech.Error](err)
		if e != nil && (e.Reason == reason.PreauthFailed || keyMayBeNew(e.Reason)) {
			t.fail("kdc", err) // it knows the principal, with another key
			return nil
		}
		refusals = append(refusals, client.Shown()+": "+textOf(err))
		if e != nil && e.Reason == reason.KDCUnreachable {
			break
		}
	}
	t.say("kdc", Skipped, "no KDC gives a ticket to what is in the keytab (%s), so only the keytab was looked at; to try the rest somebody else has to get a ticket for the service, such as with kinit and gssproxyd init TARGET | gssproxyd accept",
		strings.Join(refusals, "; "))
	return nil
}

// login gets a ticket-granting ticket into memory of its own, and says what that proves.
func (t *selfTest) login(client krb5.Principal, keys *keytab.Keytab) (*Credential, error) {
	tgt, err := t.kdc.Login(t.ctx, client, kdc.Keytab(keys.Ring()), kdc.LoginOptions{})
	if err != nil {
		return nil, err
	}
	defer tgt.Destroy()
	svc := t.caller.Service
	t.say("kdc", OK, "a KDC of %s has given a ticket to %s, with the key in %s", client.Realm, client.Shown(), keys.Ring().Name())
	// The KDC says when it made the ticket; a second is what its time is accurate to, and how long the
	// answer may take.
	t.offset = time.Unix(int64(tgt.AuthTime), 0).Sub(svc.log.Now()).Round(time.Second)
	switch skew := svc.Krb5.Clockskew; {
	case t.offset.Abs() <= 2*time.Second:
		t.offset = 0
		t.say("clock", OK, "it is that of the KDC, to two seconds")
	case t.offset.Abs() > skew:
		t.say("clock", Failed, "the KDC's is %s this host's, and %v are tolerated (clockskew)", away(t.offset), skew)
		t.steps[len(t.steps)-1].Reason = reason.ClockSkew
	default:
		t.say("clock", OK, "the KDC's is %s this host's; %v are tolerated (clockskew)", away(t.offset), skew)
	}
	return t.caller.newTemporary(t.ctx, "selftest", wayKeytab, tgt.Client, tgt)
}

func away(offset time.Duration) string {
	if offset < 0 {
		return fmt.Sprintf("%v behind", -offset)
	}
	return fmt.Sprintf("%v ahead of", offset)
}

// accept gets a ticket for each principal of the keytab and accepts it, twice.
func (t *selfTest) accept(a *Acceptor, cr *Credential) {
	ring := a.keytab.Ring()
	names := principalsOf(ring, selfTestPrincipals)
	for _, name := range names {
		server, err := krb5.ParsePrincipal(name, "")
		if err == nil {
			err = t.acceptFor(a, cr, server)
		}
		if err != nil {
			t.fail("accept", err)
			last := &t.steps[len(t.steps)-1]
			last.Text = shown(name) + ": " + last.Text
		}
		if t.ctx.Err() != nil {
			t.say("accept", Failed, "not all was tried within %v", selfTestTimeout)
			return
		}
	}
	if more := ring.Principals() - len(names); more > 0 {
		t.say("accept", Skipped, "%d more principals of the keytab were not tried", more)
	}
}

func (t *selfTest) acceptFor(a *Acceptor, cr *Credential, server krb5.Principal) error {
	svc := t.caller.Service
	ticket, err := t.kdc.Ticket(t.ctx, cr, cr.Client, server, kdc.TicketOptions{StartRealm: cr.Client.Realm})
	if err != nil {
		return err
	}
	defer ticket.Destroy()
	var out krb5.Initiated
	defer out.Reset()
	initiator := krb5.Initiator{
		Ticket: ticket, Target: server.String(), Flags: mech.FlagInteg, Preferred: svc.Enctypes(), Mech: mech.KRB5, Conf: svc.Krb5,
		Now: func() time.Time { return svc.log.Now().Add(t.offset) },
	}
	if err := initiator.Init(&out); err != nil {
		return err
	}
	var accepted krb5.Accepted
	defer accepted.Reset()
	if err := a.Accept(t.ctx, &accepted, out.Token, nil); err != nil {
		return err
	}
	t.say("accept", OK, "a ticket for %s was accepted: the keytab has the key that the KDC has, %s", server.Shown(), t.keyOf(a, ticket))
	accepted.Reset()
	err = a.Accept(t.ctx, &accepted, out.Token, nil)
	switch e, ok := errors.AsType[*mech.Error](err); {
	case ok && e.Reason == reason.Replay:
		t.say("replay cache", OK, "the same token was refused the second time")
	case err == nil:
		t.say("replay cache", Skipped, "there is none (none:): the same token was accepted twice")
	default:
		return err
	}
	return nil
}

// keyOf says with which key a ticket is encrypted.
func (t *selfTest) keyOf(a *Acceptor, ticket *krb5.Credential) string {
	_, enctype, err := krb5.TicketInClear(ticket.Ticket)
	if err != nil {
		return "of a type that is not known"
	}
	var versions []string
	if ring, ok := a.Keys.(*keytab.Ring); ok {
		for _, k := range ring.ByPrincipal(ticket.Server.AppendString(nil)) {
			if k.Key.Enctype() == enctype {
				versions = append(versions, fmt.Sprint(k.KVNO))
			}
		}
	}
	return fmt.Sprintf("%v; versions in the keytab: %s", enctype, strings.Join(versions, ", "))
}

// principalsOf are the first principals of a ring.
func principalsOf(ring *keytab.Ring, most int) (names []string) {
	for _, k := range ring.All() {
		if !slices.Contains(names, k.Principal) {
			if names = append(names, k.Principal); len(names) == most {
				break
			}
		}
	}
	return names
}

// textOf is the text of an error, without the status of GSS.
func textOf(err error) string {
	if e, ok := errors.AsType[*mech.Error](err); ok {
		return e.MinorString()
	}
	return err.Error()
}
