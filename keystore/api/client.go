package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"
)

// A Client asks the store on this host, over its socket.
type Client struct{ http http.Client }

// maxAnswer bounds what a client reads: a list of a large store.
const maxAnswer = 256 << 20

// dialTimeout is how long connecting may take.
const dialTimeout = 5 * time.Second

// NewClient returns a client for the socket at path. Nothing is asked yet.
func NewClient(path string) *Client {
	return &Client{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: dialTimeout}
			return d.DialContext(ctx, "unix", path)
		},
		DisableCompression: true,
	}}}
}

// Close ends its connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Call calls a procedure of administrators. progress is told what is done meanwhile. A refusal is an
// [*Error].
func (c *Client) Call(ctx context.Context, name string, args, res any, progress func(string)) error {
	answer, err := c.post(ctx, name, args)
	if err != nil {
		return err
	}
	defer answer.Close()
	r := io.LimitReader(answer, maxAnswer)
	if !slices.Contains(takesLong, name) {
		return json.NewDecoder(r).Decode(res)
	}
	for said := json.NewDecoder(r); ; {
		var p Progress
		switch err := said.Decode(&p); {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return errors.New("keystored ended before it had answered: ask again, and it goes on where it was")
		case err != nil:
			return err
		case p.Refusal != nil:
			return &Error{Refusal: *p.Refusal}
		case p.Result != nil:
			return json.Unmarshal(p.Result, res)
		}
		progress(p.Progress)
	}
}

// Backup writes a backup. After an error what is written is none.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	answer, err := c.post(ctx, "backup", struct{}{})
	if err != nil {
		return err
	}
	defer answer.Close()
	_, err = io.Copy(w, answer)
	return err
}

// post asks, and returns the answer, which the caller closes.
func (c *Client) post(ctx context.Context, name string, args any) (io.ReadCloser, error) {
	body, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	defer clear(body) // there may be keys in it
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://keystored/v1/admin/"+name, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	answer, err := c.http.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*net.OpError](err); ok {
			return nil, e
		}
		return nil, err
	}
	if answer.StatusCode == http.StatusOK {
		return answer.Body, nil
	}
	defer answer.Body.Close()
	e := &Error{Status: answer.StatusCode}
	if json.NewDecoder(io.LimitReader(answer.Body, MaxBody)).Decode(&e.Refusal) != nil || e.Reason == "" {
		return nil, fmt.Errorf("HTTP status %s; a keystored is expected there", answer.Status)
	}
	return nil, e
}
