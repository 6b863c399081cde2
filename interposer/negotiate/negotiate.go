// Package negotiate authenticates HTTP requests with Kerberos, by the Negotiate scheme of RFC 4559,
// for programs that have no keys: [Authenticator] is a server's end, [Transport] a client's, and a
// gssproxy daemon does the cryptography for both.
//
// A request is authenticated by itself. Who sent one says nothing about the next request on the
// same connection, which a proxy may have shared among several users.
//
// # A server
//
// An Authenticator wraps handlers, which find the client with [ClientFrom]:
//
//	daemon := interposer.New("", interposer.Options{})
//	auth := &negotiate.Authenticator{Daemon: daemon, Allow: negotiate.Principals("alice@EXAMPLE.COM")}
//	http.Handle("/", auth.Wrap(handler))
//
// Every request with a token is a call to the daemon, and most clients send two requests for each
// that they make: one to be told that a token is wanted. [CookieSession] spares them both. A test
// of a handler needs no Kerberos: it puts a client into the request's context with [NewContext].
//
// # Other schemes
//
// Negotiate can be one of several schemes. With Authenticator.Optional what carries no Negotiate
// credentials, such as those of Basic, reaches the handler, which checks them and otherwise answers
// 401 with all challenges; Authenticator.Unauthorized adds the others to ours where a token is
// refused. Credentials of other schemes are left in the request; ours are taken out, with a
// CookieSession's cookie, so that a reverse proxy does not pass them on.
//
// # Requests that the user did not want to make
//
// A browser authenticates, with a ticket or with a session's cookie, whatever page has it make the
// request. Negotiate has no remedy for that, and SameSite is none for the tickets. A site that
// changes something on request puts [http.CrossOriginProtection] around the Authenticator:
//
//	http.Handle("/", http.NewCrossOriginProtection().Handler(auth.Wrap(handler)))
//
// Somebody else cannot choose a user's session beforehand (session fixation): each begins with
// authentication and has a value of its own, and browsers take the default cookie from this host
// only. But who can write into a user's browser can leave the cookie of his own session there, so a
// page on which that matters shows who the user is.
//
// # TLS
//
// Over TLS both ends bind the authentication to the server's certificate (tls-server-end-point, RFC
// 5929): a token that was obtained by somebody in between is of no use to him. On a server that
// takes [Bind], or Authenticator.Bindings if the TLS is ended elsewhere; mech.FlagChannelBound in
// Authenticator.Require demands it.
package negotiate

import (
	"context"
	"crypto"
	_ "crypto/sha256" // the hashes of certificates
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"strings"
	"time"

	"gssproxyd/interposer"
)

const scheme = "Negotiate"

// callTimeout is how long a call to the daemon may take, if the request's own context does not say
// less.
const callTimeout = 30 * time.Second

// Keys of a context: who has authenticated to us, and to whom we have.
type (
	clientKey struct{}
	serverKey struct{}
)

// ClientFrom returns the client that has authenticated the request that a server's handler has the
// context of; nil if it has not.
func ClientFrom(ctx context.Context) *interposer.Peer {
	p, _ := ctx.Value(clientKey{}).(*interposer.Peer)
	return p
}

// NewContext returns a context with a client in it, for ClientFrom: a test of a handler needs no
// Kerberos.
func NewContext(ctx context.Context, client *interposer.Peer) context.Context {
	return context.WithValue(ctx, clientKey{}, client)
}

// ServerFrom returns the server that has proven itself in answering a request of a Transport's, with
// the flags that were granted. It is nil if the server has not, as where it did not ask, or where a
// session's cookie was enough: for programs that must know who has answered.
func ServerFrom(resp *http.Response) *interposer.Peer {
	if resp == nil || resp.Request == nil {
		return nil
	}
	p, _ := resp.Request.Context().Value(serverKey{}).(*interposer.Peer)
	return p
}

// EndPoint returns the channel bindings of type tls-server-end-point for a connection on which the
// server has shown cert (RFC 5929, section 4). They are nil for a certificate whose signature has
// no hash, such as Ed25519, for which there are none. It is for Authenticator.Bindings, of a server
// that knows the certificate of the proxy in front of it.
func EndPoint(cert *x509.Certificate) *interposer.ChannelBindings {
	if cert == nil {
		return nil
	}
	var hash crypto.Hash
	switch cert.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1,
		x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.DSAWithSHA256, x509.ECDSAWithSHA256:
		hash = crypto.SHA256
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		hash = crypto.SHA512
	default:
		return nil
	}
	h := hash.New()
	h.Write(cert.Raw)
	return &interposer.ChannelBindings{AppData: h.Sum([]byte("tls-server-end-point:"))}
}

// credentials finds what follows the scheme in a header's values, which are lists. ok says that the
// scheme is there, and token is nil if nothing follows or what does is not base64. Where the scheme
// is there several times the first token counts.
func credentials(values []string) (token []byte, ok bool) {
	for _, v := range values {
		for v != "" {
			var element string
			element, v = cutElement(v)
			name, text, _ := strings.Cut(element, " ")
			if !strings.EqualFold(name, scheme) {
				continue
			}
			ok = true
			token, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
			if err == nil && len(token) > 0 {
				return token, true
			}
		}
	}
	return nil, ok
}

// cutElement cuts the first element off a list, in which commas within quoted strings separate
// nothing (RFC 9110, section 5.6).
func cutElement(list string) (element, rest string) {
	quoted := false
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			return strings.TrimSpace(list[:i]), list[i+1:]
		}
	}
	return strings.TrimSpace(list), ""
}

// say is a header's value with a token, which may be empty.
func say(token []byte) string {
	if len(token) == 0 {
		return scheme
	}
	return scheme + " " + base64.StdEncoding.EncodeToString(token)
}
