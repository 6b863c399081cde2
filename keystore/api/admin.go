package api

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/keystore"
	"gssproxyd/keystore/delivery"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// A procedure is one that administrators call, with POST /v1/admin/NAME.
type procedure struct {
	verb Verb
	call func(s *Server, ctx context.Context, r *http.Request, a *administrator) (any, error)
}

// administrator is one who has called.
type administrator struct {
	*caller
	rights   []Admin
	all      bool
	verb     Verb // of what is called
	progress func(string)
}

// may returns a refusal unless the administrator may do what he has called with a principal.
func (a *administrator) may(principal string) error {
	if a.permits(principal) {
		return nil
	}
	e := refuse(http.StatusForbidden, reason.StoreNotPermitted, "%s has no right to the verb %s", a.name, a.verb)
	if e.principal = principal; principal != "" {
		e.Text += ", with " + principal
	}
	return e
}

func (a *administrator) permits(principal string) bool {
	return a.all || slices.ContainsFunc(a.rights, func(one Admin) bool { return one.permits(a.verb, principal) })
}

// procedures are those of administrators, by name.
var procedures = map[string]procedure{
	"import":        about(Import, (*Server).importKeys, func(a *ImportRequest) string { return a.Principal }),
	"alias":         about(Policy, (*Server).alias, func(a *AliasRequest) string { return a.Principal }),
	"policy":        about(Policy, (*Server).setPolicy, func(a *PolicyRequest) string { return a.Principal }),
	"rotate":        about(Rotate, (*Server).rotate, func(a *RotateRequest) string { return a.Principal }),
	"disable":       about(Disable, (*Server).disable, func(a *DisableRequest) string { return a.Principal }),
	"enable":        about(Disable, (*Server).enable, func(a *Named) string { return a.Principal }),
	"delete":        about(Delete, (*Server).delete, func(a *Named) string { return a.Principal }),
	"history":       about(History, (*Server).history, func(a *Named) string { return a.Principal }),
	"show":          about(Show, (*Server).show, func(a *Named) string { return a.Principal }),
	"list":          about(List, (*Server).listAll, nil),
	"host-add":      about(Hosts, (*Server).addHost, nil),
	"host-remove":   about(Hosts, (*Server).removeHost, nil),
	"host-list":     about(Hosts, (*Server).listHosts, nil),
	"master-grant":  about(Master, (*Server).grant, nil),
	"master-revoke": about(Master, (*Server).revoke, nil),
	"master-rotate": about(Master, (*Server).rotateMaster, nil),
	"signer-new":    about(Master, (*Server).newSigner, nil),
	"signer-switch": about(Master, (*Server).switchSigner, nil),
	"signer-show":   about(Master, (*Server).showSigner, nil),
	"master-show":   about(Master, (*Server).showMaster, nil),
	"backup":        {verb: Master}, // whose answer is no JSON object: see backup
}

// about makes a procedure of a function. principal is whose entry it is about; nil: it is about none.
func about[A, R any](verb Verb, f func(*Server, context.Context, *administrator, *A) (*R, error), principal func(*A) string) procedure {
	return procedure{verb, func(s *Server, ctx context.Context, r *http.Request, a *administrator) (any, error) {
		var args A
		if err := decode(r, &args, true); err != nil {
			return nil, err
		}
		var p string
		if principal != nil {
			p = principal(&args)
			if err := checkPrincipal(p); err != nil {
				return nil, err
			}
		}
		if err := a.may(p); err != nil {
			return nil, err
		}
		res, err := f(s, ctx, a, &args)
		if err != nil {
			e := refusal(err)
			e.principal = p
			return nil, e
		}
		return res, nil
	}}
}

// maxPrincipal bounds the name of one.
const maxPrincipal = 1024

// checkPrincipal refuses what is not the one way to write a principal with its realm: entries are found
// by it.
func checkPrincipal(s string) *Error {
	p, err := krb5.ParsePrincipal(s, "")
	switch {
	case len(s) > maxPrincipal || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return badRequest("%.300q is no principal: at most %d characters are expected, and no control characters", s, maxPrincipal)
	case err != nil:
		return badRequest("%v; its name is expected with the realm, as in HTTP/www.example.com@EXAMPLE.COM", err)
	case p.Realm == "" || p.Components[0] == "" && len(p.Components) == 1:
		return badRequest("%q is no principal; its name is expected with the realm, as in HTTP/www.example.com@EXAMPLE.COM", s)
	case p.String() != s:
		return badRequest("%q is not how the principal is written; write it as %q", s, p.String())
	}
	return nil
}

// Progress is what an administrator is told while something takes long: each line of such an answer is
// one of these, the last one with the result or a refusal.
type Progress struct {
	Progress string          `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Refusal  *Refusal        `json:"refusal,omitempty"`
}

// takesLong names the procedures that tell progress.
var takesLong = []string{"rotate", "master-rotate", "signer-switch", "signer-show"}

// longest is how long one of these may take: a rotation waits for hosts, which have ten minutes.
const longest = time.Hour

// admin answers an administrator.
func (s *Server) admin(w http.ResponseWriter, r *http.Request, c *caller, name string) error {
	p, known := procedures[name]
	switch {
	case !known:
		return refuse(http.StatusNotFound, reason.StoreRequest, "there is no /v1/admin/%s", name)
	case r.Method != http.MethodPost:
		return refuse(http.StatusMethodNotAllowed, reason.StoreRequest, "POST is expected for %s", r.URL.Path)
	}
	a := &administrator{caller: c, verb: p.verb, all: c.uid != nil && own(*c.uid), progress: func(string) {}}
	for _, one := range *s.admins.Load() {
		if one.is(c) {
			a.rights = append(a.rights, one)
		}
	}
	if !a.all && len(a.rights) == 0 {
		return refuse(http.StatusForbidden, reason.StoreNotPermitted, "%s is no administrator", c.name)
	}
	if name == "backup" {
		return s.backup(w, r, a)
	}
	if !slices.Contains(takesLong, name) {
		res, err := p.call(s, r.Context(), r, a)
		if err != nil {
			return err
		}
		return reply(w, http.StatusOK, res)
	}
	ctx, cancel := context.WithTimeout(r.Context(), longest)
	defer cancel()
	rc := http.NewResponseController(w)
	e := json.NewEncoder(w)
	begun := false
	say := func(p Progress) {
		if !begun {
			w.Header().Set("Content-Type", "application/x-ndjson")
			begun = true
		}
		rc.SetWriteDeadline(time.Now().Add(writeTimeout))
		e.Encode(p)
		rc.Flush()
	}
	a.progress = func(text string) {
		rc.SetReadDeadline(time.Time{})
		say(Progress{Progress: text})
	}
	res, err := p.call(s, ctx, r, a)
	var b []byte
	if err == nil {
		b, err = json.Marshal(res)
	}
	switch {
	case err == nil:
		say(Progress{Result: b})
	case !begun:
		return err
	default:
		e := refusal(err)
		s.denied(ctx, c, "admin/"+name, e.principal, &e.Refusal)
		say(Progress{Refusal: &e.Refusal})
	}
	return nil
}

// backup answers with a backup. One that fails has no end.
func (s *Server) backup(w http.ResponseWriter, r *http.Request, a *administrator) error {
	if err := a.may(""); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	if _, err := s.o.Store.Backup(r.Context(), &patient{w, http.NewResponseController(w)}); err != nil {
		s.o.Log.Error("a backup was not finished", "who", a.where(), "error", err)
		panic(http.ErrAbortHandler)
	}
	s.record(r.Context(), a.caller, &audit.Event{Kind: audit.BackupWritten, Procedure: "admin/backup", Text: a.where() + " has written a backup"})
	return nil
}

// patient writes what is long: each part of it is to be taken in time.
type patient struct {
	http.ResponseWriter
	rc *http.ResponseController
}

func (p *patient) Write(b []byte) (int, error) {
	p.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	return p.ResponseWriter.Write(b)
}

// is reports whether a section is about the caller.
func (a *Admin) is(c *caller) bool {
	if c.uid != nil {
		return a.UID != nil && *a.UID == *c.uid
	}
	return a.Certificate != "" && slices.Contains(c.names, a.Certificate)
}

// Named names an entry.
type Named struct {
	Principal string `json:"principal"`
}

// Marked answers a change of an entry: where it stands now.
type Marked struct {
	Principal string `json:"principal"`
	keystore.Mark
}

// change changes an entry that is there.
func (s *Server) change(ctx context.Context, a *administrator, principal, what string, f func(*keystore.Entry) error) (*Marked, error) {
	e, err := s.o.Store.Change(ctx, nil, principal, a.name, what, func(e *keystore.Entry) error {
		if e.Revision == 0 {
			return keystore.ErrNoEntry
		}
		return f(e)
	})
	if err != nil {
		return nil, err
	}
	defer e.Zero()
	return &Marked{principal, e.Mark}, nil
}

// PolicyRequest changes what of an entry's policy is given. Lists replace those that are there.
type PolicyRequest struct {
	Principal string               `json:"principal"`
	Hosts     *[]string            `json:"hosts,omitempty"`
	Rules     *map[string][]string `json:"rules,omitempty"`
	Interval  *int64               `json:"interval,omitempty"` // seconds between rotations; 0: none by itself
}

// maxRules bounds the rules of an entry: a delivery has room for them beside its keys.
const maxRules = 64 << 10

func size(rules map[string][]string) (n int) {
	for key, values := range rules {
		for _, v := range values {
			n += len(key) + len(v)
		}
	}
	return n
}

// maxInterval is ten years.
const maxInterval = 10 * 365 * 24 * 3600

func (s *Server) setPolicy(ctx context.Context, a *administrator, p *PolicyRequest) (*Marked, error) {
	if p.Interval != nil && (*p.Interval < 0 || *p.Interval > maxInterval) {
		return nil, badRequest("interval is %d; 0 to %d seconds are expected", *p.Interval, maxInterval)
	}
	if p.Rules != nil {
		// As hosts judge them: what each of them would refuse is refused here.
		if _, err := conf.EntryRules(*p.Rules, etype.IsName); err != nil {
			return nil, badRequest("rules: %v", err)
		}
		if n := size(*p.Rules); n > maxRules {
			return nil, badRequest("rules have %d bytes; at most %d are expected, for which there is room in what a host is sent", n, maxRules)
		}
	}
	return s.change(ctx, a, p.Principal, "policy", func(e *keystore.Entry) error {
		if p.Hosts != nil {
			e.Policy.Hosts = *p.Hosts
		}
		if p.Rules != nil {
			e.Policy.Rules = *p.Rules
		}
		if p.Interval != nil {
			e.Interval = time.Duration(*p.Interval) * time.Second
		}
		return nil
	})
}

// RotateRequest has the key of a principal rotated.
type RotateRequest struct {
	Principal string `json:"principal"`
	Force     bool   `json:"force,omitempty"` // go on without hosts that do not acknowledge
}

// rotate tells of each step that is stored.
func (s *Server) rotate(ctx context.Context, a *administrator, r *RotateRequest) (*Named, error) {
	if s.o.Rotate == nil {
		return nil, refuse(http.StatusServiceUnavailable, reason.StoreUnavailable, "this keystored does not rotate: keystored.conf has no section [realm/NAME]")
	}
	changes := s.index.wait(Have{Principal: r.Principal})
	defer s.index.leave(changes)
	done := make(chan error, 1)
	go func() { done <- s.o.Rotate(ctx, r.Principal, a.name, r.Force) }() // which ctx ends
	for last := ""; ; {
		select {
		case err := <-done:
			return &Named{r.Principal}, err
		case <-changes.woken:
			e, err := s.o.Store.Entry(ctx, r.Principal)
			if err != nil {
				continue // the rotation says what is wrong
			}
			if now := summary(e).step(); now != last && now != "" {
				a.progress(now)
				last = now
			}
			e.Zero()
		}
	}
}

// DisableRequest has no host use the keys of an entry, for a reason in words.
type DisableRequest struct {
	Principal string `json:"principal"`
	Why       string `json:"why"`
}

const maxWhy = 1024

func (s *Server) disable(ctx context.Context, a *administrator, d *DisableRequest) (*Marked, error) {
	if d.Why == "" || len(d.Why) > maxWhy {
		return nil, badRequest("why has %d bytes; 1 to %d are expected: hosts and whoever asks are to be told why", len(d.Why), maxWhy)
	}
	return s.change(ctx, a, d.Principal, "disabled: "+d.Why, func(e *keystore.Entry) error {
		e.Disabled = d.Why
		return nil
	})
}

func (s *Server) enable(ctx context.Context, a *administrator, n *Named) (*Marked, error) {
	return s.change(ctx, a, n.Principal, "enabled", func(e *keystore.Entry) error {
		e.Disabled = ""
		return nil
	})
}

func (s *Server) delete(ctx context.Context, a *administrator, n *Named) (*Marked, error) {
	return s.change(ctx, a, n.Principal, "deleted", func(e *keystore.Entry) error {
		e.Zero()
		e.Keys, e.Rotation, e.Alarm, e.Deleted = nil, nil, "", time.Now()
		return nil
	})
}

// HostRequest is about a host.
type HostRequest struct {
	Name      string `json:"name"`
	Recipient string `json:"recipient,omitempty"` // to add it
}

// HostShown is a host that is enrolled.
type HostShown struct {
	Name      string     `json:"name"`
	Recipient string     `json:"recipient"`
	Added     time.Time  `json:"added"`
	By        string     `json:"by"`
	Seen      *time.Time `json:"seen,omitempty"` // when it was heard of last
}

func showHost(h *keystore.Host) *HostShown {
	shown := &HostShown{Name: h.Name, Recipient: h.Recipient, Added: h.Added, By: h.By}
	if !h.Seen.IsZero() {
		shown.Seen = &h.Seen
	}
	return shown
}

func (s *Server) addHost(ctx context.Context, a *administrator, h *HostRequest) (*HostShown, error) {
	if name, err := CertificateName(h.Name); err != nil || strings.Contains(name, "*") {
		return nil, badRequest("%.300q is no name of a host; a DNS name or a URI is expected, as in its certificate", h.Name)
	} else if name != h.Name {
		return nil, badRequest("%q is not how names of certificates are compared; write it as %q", h.Name, name)
	}
	added, err := s.o.Store.AddHost(ctx, h.Name, h.Recipient, a.name)
	if err != nil {
		return nil, err
	}
	return showHost(added), nil
}

// HostNamed names a host.
type HostNamed struct {
	Name string `json:"name"`
}

func (s *Server) removeHost(ctx context.Context, a *administrator, h *HostNamed) (*HostNamed, error) {
	return h, s.o.Store.RemoveHost(ctx, h.Name, a.name)
}

// Nothing is asked with it.
type Nothing struct{}

// HostsShown are all hosts that are enrolled.
type HostsShown struct {
	Hosts   []*HostShown `json:"hosts"`
	Refused []string     `json:"refused"` // whose records could not be read, and why
}

func (s *Server) listHosts(ctx context.Context, _ *administrator, _ *Nothing) (*HostsShown, error) {
	all, refused, err := s.o.Store.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	res := &HostsShown{Hosts: []*HostShown{}, Refused: []string{}}
	for _, err := range refused {
		res.Refused = append(res.Refused, err.Error())
	}
	for _, h := range all {
		res.Hosts = append(res.Hosts, showHost(h))
	}
	return res, nil
}

// MemberRequest is about who can open the keyring.
type MemberRequest struct {
	Name      string `json:"name"`
	Recipient string `json:"recipient"`
}

func (s *Server) grant(ctx context.Context, a *administrator, m *MemberRequest) (*KeyringShown, error) {
	if m.Name == "" || m.Recipient == "" {
		return nil, badRequest("name and recipient are expected")
	}
	if err := s.o.Store.Grant(ctx, m.Name, m.Recipient, a.name); err != nil {
		return nil, err
	}
	return s.keyring()
}

func (s *Server) revoke(ctx context.Context, a *administrator, m *HostNamed) (*KeyringShown, error) {
	if err := s.o.Store.Revoke(ctx, m.Name, a.name); err != nil {
		return nil, err
	}
	return s.keyring()
}

// ForceRequest has a master key rotated.
type ForceRequest struct {
	Force bool `json:"force,omitempty"` // without instances that are not heard of
}

func (s *Server) rotateMaster(ctx context.Context, a *administrator, f *ForceRequest) (*KeyringShown, error) {
	if err := s.o.Store.RotateMaster(ctx, a.name, f.Force, a.progress); err != nil {
		return nil, err
	}
	return s.keyring()
}

func (s *Server) newSigner(ctx context.Context, a *administrator, _ *Nothing) (*SignerShown, error) {
	if err := s.o.Store.NewSigner(ctx, a.name); err != nil {
		return nil, err
	}
	return s.signer()
}

func (s *Server) switchSigner(ctx context.Context, a *administrator, f *ForceRequest) (*SignerShown, error) {
	if err := s.o.Store.SwitchSigner(ctx, a.name, f.Force, a.progress); err != nil {
		return nil, err
	}
	return s.signer()
}

func (s *Server) showSigner(ctx context.Context, a *administrator, _ *Nothing) (*SignerShown, error) {
	res, err := s.signer()
	if err != nil {
		return nil, err
	}
	a.progress("looking at what hosts have acknowledged")
	behind, err := s.o.Store.Behind(ctx)
	if err != nil {
		return nil, err
	}
	res.Behind = []BehindShown{}
	for i := range behind {
		b := BehindShown{Name: behind[i].Name, Principals: behind[i].Principals}
		if !behind[i].Seen.IsZero() {
			b.Seen = &behind[i].Seen
		}
		res.Behind = append(res.Behind, b)
	}
	return res, nil
}

// SignerShown is who signs for the store.
type SignerShown struct {
	Signer string        `json:"signer"`
	Next   string        `json:"next,omitempty"`   // that is to come, and signs nothing yet
	Former string        `json:"former,omitempty"` // while entries are not all signed anew
	Behind []BehindShown `json:"behind,omitempty"` // hosts that do not have in force what the store has
}

// BehindShown is a host that does not have in force what the store has of some entries.
type BehindShown struct {
	Name       string     `json:"name"`
	Seen       *time.Time `json:"seen,omitempty"` // when it was heard of last
	Principals []string   `json:"principals"`
}

func (s *Server) signer() (*SignerShown, error) {
	p, err := s.o.Store.Signers()
	if err != nil {
		return nil, err
	}
	shown := &SignerShown{Signer: delivery.FormatSigner(p.Current)}
	if p.Next != nil {
		shown.Next = delivery.FormatSigner(p.Next)
	}
	if p.Former != nil {
		shown.Former = delivery.FormatSigner(p.Former)
	}
	return shown, nil
}

// KeyringShown is what may be shown of the keyring.
type KeyringShown struct {
	Epoch      uint64            `json:"epoch"`
	Generation uint64            `json:"generation"`
	Signer     string            `json:"signer"`
	Members    []keystore.Member `json:"members"`
	Masters    []MasterShown     `json:"masters"` // the last one seals
}

// MasterShown is what may be shown of a master key.
type MasterShown struct {
	ID   uint32    `json:"id"`
	Made time.Time `json:"made"`
}

func (s *Server) showMaster(context.Context, *administrator, *Nothing) (*KeyringShown, error) {
	return s.keyring()
}
