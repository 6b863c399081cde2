package negotiate_test

import (
	"crypto/rand"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"sync"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/interposer/negotiate"
	"gssproxyd/mech"
)

// sessions is a [negotiate.Session] in memory. It keeps all of a client, with what the client has
// delegated; the cookie has nothing but the session's random identifier.
type sessions struct {
	mu      sync.Mutex
	clients map[string]*interposer.Peer
}

const cookieName = "__Host-session"

func (s *sessions) Load(r *http.Request) (*interposer.Peer, error) {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return nil, nil // there is no session
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	client := s.clients[cookie.Value]
	if client == nil || !time.Now().Before(client.Expires) {
		return nil, nil
	}
	return client, nil
}

func (s *sessions) Save(w http.ResponseWriter, r *http.Request, client *interposer.Peer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, c := range s.clients {
		if !time.Now().Before(c.Expires) {
			delete(s.clients, id)
		}
	}
	if old, err := r.Cookie(cookieName); err == nil {
		delete(s.clients, old.Value)
	}
	id := rand.Text() // never one that came with the request
	s.clients[id] = client
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: id, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
	return nil
}

// A site that acts as its users remembers them itself: what a user has delegated is there on every
// request of the session.
func ExampleSession() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()
	auth := &negotiate.Authenticator{
		Daemon:   daemon,
		Delegate: true,
		Session:  &sessions{clients: map[string]*interposer.Peer{}},
	}
	server := httptest.NewTLSServer(auth.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client := negotiate.ClientFrom(r.Context())
		fmt.Fprintf(w, "%v with a %v", client, client.Delegated) // for Transport.As
	})))
	defer server.Close()

	jar, err := cookiejar.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	alice := &http.Client{Jar: jar, Transport: &negotiate.Transport{
		Daemon: daemon,
		Cred:   interposer.ServiceCred,
		Flags:  mech.FlagDeleg,
		Base:   server.Client().Transport.(*http.Transport),
	}}
	defer alice.CloseIdleConnections()
	for range 2 {
		resp, err := alice.Get(server.URL)
		if err != nil {
			log.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\n", body)
	}
	fmt.Println("tokens accepted:", fake.Accepted.Load())
	// Output:
	// alice@EXAMPLE.TEST with a credential of alice@EXAMPLE.TEST
	// alice@EXAMPLE.TEST with a credential of alice@EXAMPLE.TEST
	// tokens accepted: 1
}
