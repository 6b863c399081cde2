package negotiate_test

import (
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/interposer/interposertest"
	"gssproxyd/interposer/negotiate"
	"gssproxyd/mech"
)

// A server that knows who asks, and a client that authenticates to it.
func Example() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	daemon := interposer.New(fake.Socket, interposer.Options{}) // New("", ...) is the host's daemon
	defer daemon.Close()

	auth := &negotiate.Authenticator{Daemon: daemon, Allow: negotiate.Principals("alice@EXAMPLE.TEST")}
	hello := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %v", negotiate.ClientFrom(r.Context()))
	}
	server := httptest.NewServer(auth.Wrap(http.HandlerFunc(hello)))
	defer server.Close()

	client := &http.Client{Transport: &negotiate.Transport{
		Daemon: daemon,
		Cred:   interposer.ServiceCred,
		Plain:  []string{"127.0.0.1"}, // there is no TLS here
	}}
	defer client.CloseIdleConnections()
	resp, err := client.Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s\n", resp.Status, body)
	// Output: 200 OK: hello, alice@EXAMPLE.TEST
}

// A site with sessions: who has authenticated once has a cookie, and needs no Kerberos with it.
func ExampleAuthenticator() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	daemon := interposer.New(fake.Socket, interposer.Options{WaitForDaemon: 5 * time.Second})
	defer daemon.Close()
	key := make([]byte, 32) // in earnest it is kept in a file, for the sessions to outlive the program
	rand.Read(key)

	auth := &negotiate.Authenticator{
		Daemon:  daemon,
		Session: &negotiate.CookieSession{Keys: [][]byte{key}, MaxAge: time.Hour},
		Skip:    func(r *http.Request) bool { return r.URL.Path == "/healthz" || negotiate.Preflight(r) },
		Unauthorized: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "Get a ticket with kinit.")
		}),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %v", negotiate.ClientFrom(r.Context()))
	})
	server := httptest.NewTLSServer(http.NewCrossOriginProtection().Handler(auth.Wrap(mux)))
	defer server.Close()

	get := func(client *http.Client, path string) {
		resp, err := client.Get(server.URL + path)
		if err != nil {
			log.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s %d: %s\n", path, resp.StatusCode, body)
	}
	get(server.Client(), "/")
	get(server.Client(), "/healthz")
	jar, err := cookiejar.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	alice := &http.Client{Jar: jar, Transport: &negotiate.Transport{
		Daemon: daemon, Cred: interposer.ServiceCred, Base: server.Client().Transport.(*http.Transport),
	}}
	defer alice.CloseIdleConnections()
	get(alice, "/a")
	get(&http.Client{Jar: jar, Transport: server.Client().Transport}, "/b")
	fmt.Println("tokens accepted:", fake.Accepted.Load())
	// Output:
	// / 401: Get a ticket with kinit.
	// /healthz 200: ok
	// /a 200: hello, alice@EXAMPLE.TEST
	// /b 200: hello, alice@EXAMPLE.TEST
	// tokens accepted: 1
}

// Negotiate and Basic on one server: who has no ticket has a password.
func ExampleAuthenticator_basic() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()

	basic := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Add("WWW-Authenticate", `Basic realm="example"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
	auth := &negotiate.Authenticator{
		Daemon:       daemon,
		Optional:     true,
		Unauthorized: http.HandlerFunc(basic), // the token was refused
		Log:          slog.New(slog.DiscardHandler),
	}
	handler := auth.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		client := negotiate.ClientFrom(r.Context())
		switch {
		case client != nil:
			fmt.Fprintf(w, "%v, by Kerberos", client)
		case ok && user == "bob" && password == "secret":
			fmt.Fprintf(w, "%s, by password", user)
		default:
			w.Header().Add("WWW-Authenticate", "Negotiate")
			basic(w, r)
		}
	}))

	ask := func(set func(r *http.Request)) {
		r := httptest.NewRequest("GET", "/", nil)
		set(r)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		fmt.Println(w.Code, w.Body, w.Header()["Www-Authenticate"])
	}
	ask(func(r *http.Request) {})
	ask(func(r *http.Request) { r.SetBasicAuth("bob", "secret") })
	ask(func(r *http.Request) { r.Header.Set("Authorization", "Negotiate AAAA") })
	// Output:
	// 401  [Negotiate Basic realm="example"]
	// 200 bob, by password []
	// 401  [Negotiate Basic realm="example"]
}

// A session is a cookie, which tells the next request's handler who the client is.
func ExampleCookieSession() {
	key := make([]byte, 32)
	rand.Read(key)
	sessions := &negotiate.CookieSession{Keys: [][]byte{key}}
	// Authenticator.Session does all of this.
	w := httptest.NewRecorder()
	client := &interposer.Peer{
		Name:       interposer.Principal("alice@EXAMPLE.TEST"),
		Expires:    time.Now().Add(10 * time.Hour),
		Attributes: []interposer.Attribute{{Name: interposer.AuthIndicator, Value: []byte("otp"), Authenticated: true}},
	}
	if err := sessions.Save(w, httptest.NewRequest("GET", "/", nil), client); err != nil {
		log.Fatal(err)
	}
	cookie := w.Result().Cookies()[0]
	fmt.Printf("%s, secure: %t\n", cookie.Name, cookie.Secure)

	next := httptest.NewRequest("GET", "/", nil)
	next.AddCookie(cookie)
	client, err := sessions.Load(next)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%v, with %s\n", client, client.Attributes[0].Value)

	rand.Read(key) // with a new key the sessions are over
	client, err = sessions.Load(next)
	fmt.Println("nobody:", client == nil, err)
	// Output:
	// __Host-negotiate, secure: true
	// alice@EXAMPLE.TEST, with otp
	// nobody: true <nil>
}

// A handler is tested without Kerberos.
func ExampleNewContext() {
	hello := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %v", negotiate.ClientFrom(r.Context()))
	}
	alice := &interposer.Peer{Name: interposer.Principal("alice@EXAMPLE.TEST")}
	r := httptest.NewRequest("GET", "/", nil)
	w := httptest.NewRecorder()
	hello(w, r.WithContext(negotiate.NewContext(r.Context(), alice)))
	fmt.Println(w.Body)
	// Output: hello, alice@EXAMPLE.TEST
}

// A client authenticates, and is told who the server has proven to be.
func ExampleTransport() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()
	auth := &negotiate.Authenticator{Daemon: daemon}
	server := httptest.NewTLSServer(auth.Wrap(http.NotFoundHandler()))
	defer server.Close()

	client := &http.Client{Transport: &negotiate.Transport{
		Daemon: daemon,
		Cred:   interposer.ServiceCred,
		Base:   server.Client().Transport.(*http.Transport), // knows the server's certificate
	}}
	defer client.CloseIdleConnections()
	resp, err := client.Get(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	peer := negotiate.ServerFrom(resp)
	fmt.Printf("%v with %s: %s\n", peer, peer.Flags, resp.Status)
	// Output: HTTP@127.0.0.1 with mutual, integrity, transferable: 404 Not Found
}

// A server demands proof that is bound to its certificate.
func ExampleBind() {
	fake := interposertest.StartForExample()
	defer fake.Stop()
	daemon := interposer.New(fake.Socket, interposer.Options{})
	defer daemon.Close()
	lender := httptest.NewTLSServer(nil) // has a certificate, and a client that believes it
	lender.Close()

	auth := &negotiate.Authenticator{Daemon: daemon, Require: mech.FlagChannelBound}
	flags := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, negotiate.ClientFrom(r.Context()).Flags)
	}
	server := &http.Server{
		Handler:   auth.Wrap(http.HandlerFunc(flags)),
		TLSConfig: &tls.Config{Certificates: lender.TLS.Certificates},
	}
	negotiate.Bind(server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- server.ServeTLS(listener, "", "") }()

	client := &http.Client{Transport: &negotiate.Transport{
		Daemon: daemon, Cred: interposer.ServiceCred, Base: lender.Client().Transport.(*http.Transport),
	}}
	resp, err := client.Get("https://" + listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s\n", resp.Status, body)
	client.CloseIdleConnections()
	server.Close()
	<-served
	// Output: 200 OK: mutual, integrity, transferable, channel-bound
}
