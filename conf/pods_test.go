package conf

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
)

const podConf = `
[gssproxy]
pod_socket = /run/gssproxyd/csi/register.sock
[service/host]
mechs = krb5
euid = 0
allow_any_uid = yes
[service/shop]
mechs = krb5
euid = 33
pod = shop/web/*
pod = shop/cache/cache-?
[service/lab]
mechs = krb5
euid = 0
allow_any_uid = yes
pod = lab-*/*/*
`

const podUID, otherPodUID = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"

// A pod gets what is for it: by its socket and the kernel's word, both.
func TestDecidePods(t *testing.T) {
	c := load(t, podConf)
	const podSocket = "/run/gssproxyd/pods/0/gssproxy.sock"
	pod := func(names string) peer.Maybe[peer.Pod] {
		n := strings.Split(names, "/")
		return peer.Known(peer.Pod{UID: podUID, Namespace: n[0], ServiceAccount: n[1], Name: n[2]})
	}
	in := func(uid string) peer.Maybe[peer.Place] { return peer.Known(peer.Place{Pod: uid}) }
	none := peer.Maybe[peer.Pod]{}
	for name, test := range map[string]struct {
		p      peer.Info
		socket string
		want   string // service, or reason and the service it is about
		says   string
	}{
		"its service":                    {peer.Info{UID: 33, Registered: pod("shop/web/web-7"), Place: in(podUID)}, podSocket, "shop", "matches"},
		"the other pattern":              {peer.Info{UID: 33, Registered: pod("shop/cache/cache-0"), Place: in(podUID)}, podSocket, "shop", "matches"},
		"with any uid":                   {peer.Info{UID: 70000, Registered: pod("lab-a/x/y"), Place: in(podUID)}, podSocket, "lab", "matches"},
		"another uid":                    {peer.Info{UID: 34, Registered: pod("shop/web/web-7"), Place: in(podUID)}, podSocket, "pod-mismatch lab", "is for the pod lab-*/*/*, not shop/web/web-7"},
		"another name":                   {peer.Info{UID: 33, Registered: pod("shop/cache/cache-10"), Place: in(podUID)}, podSocket, "pod-mismatch shop", "is for the pod shop/web/*, shop/cache/cache-?, not shop/cache/cache-10"},
		"another account":                {peer.Info{UID: 33, Registered: pod("shop/website/web"), Place: in(podUID)}, podSocket, "pod-mismatch shop", "not shop/website/web"},
		"another pod's socket":           {peer.Info{UID: 33, Registered: pod("shop/web/web-7"), Place: in(otherPodUID)}, podSocket, "pod-mismatch", "the caller uses the socket of pod shop/web/web-7 (" + podUID + "), and is in pod " + otherPodUID},
		"a pod's socket, from the host":  {peer.Info{UID: 33, Registered: pod("shop/web/web-7"), Place: in("")}, podSocket, "pod-mismatch", "is in no pod"},
		"nobody knows where it is":       {peer.Info{UID: 33, Registered: pod("shop/web/web-7")}, podSocket, "pod-mismatch", "is not known"},
		"a registration without a UID":   {peer.Info{UID: 33, Registered: peer.Known(peer.Pod{Namespace: "shop", ServiceAccount: "web", Name: "x"}), Place: in("")}, podSocket, "pod-mismatch", "is in no pod"},
		"the host's service on its own":  {peer.Info{UID: 33, Registered: none, Place: in("")}, SocketPath, "host", "matches"},
		"a pod on the host's socket":     {peer.Info{UID: 33, Registered: none, Place: in(podUID)}, SocketPath, "host", "matches"},
		"a pod's socket of no pod known": {peer.Info{UID: 33, Registered: none, Place: in(podUID)}, podSocket, "wrong-socket host", "is reached through"},
	} {
		t.Run(name, func(t *testing.T) {
			d := c.Decide(&test.p, test.socket)
			got := string(d.Reason)
			if d.Service != nil {
				got += d.Service.Name
			}
			if d.near != nil {
				got += " " + d.near.Name
			}
			if got != test.want || !strings.Contains(d.Conclusion(), test.says) {
				t.Errorf("got %s, want %s; %s\n%s", got, test.want, d.Conclusion(), strings.Join(d.Trace(), "\n"))
			}
		})
	}
	if d := c.Decide(&peer.Info{UID: 33, Registered: none}, "/run/none"); d.Service != nil || !strings.Contains(strings.Join(d.Trace(), "\n"), "the caller has not come through a pod's socket") {
		t.Errorf("%s", d.Trace())
	}
	if got := c.Needs(&peer.Info{Registered: pod("a/b/c")}, podSocket); got != peer.EvidencePlace {
		t.Errorf("a pod's socket needs %b", got)
	}
}

// Whatever else is configured: through the socket of a pod nobody gets a service of the host, and
// nobody gets anything who is not in that pod; and without such a socket nobody gets one for pods.
func TestPodsApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &Config{DefaultSocket: "/run/default"}
		patterns := rapid.SampledFrom([][]string{nil, {"*/*/*"}, {"a/b/c"}, {"a/*/c", "b/b/b"}})
		for range rapid.IntRange(1, 6).Draw(t, "services") {
			c.Services = append(c.Services, &Service{
				AllowAnyUID: rapid.Bool().Draw(t, "any"), Pods: patterns.Draw(t, "pods"),
				Socket: rapid.SampledFrom([]string{"", "/run/own"}).Draw(t, "socket"),
			})
		}
		name := rapid.SampledFrom([]string{"a", "b", "c"})
		uid := rapid.SampledFrom([]string{"", podUID, otherPodUID})
		pod := peer.Pod{UID: uid.Draw(t, "registered"), Namespace: name.Draw(t, "namespace"), ServiceAccount: name.Draw(t, "account"), Name: name.Draw(t, "name")}
		place := peer.Place{Pod: uid.Draw(t, "is in")}
		p := &peer.Info{Place: peer.Known(place)}
		registered := rapid.Bool().Draw(t, "through a pod's socket")
		if registered {
			p.Registered = peer.Known(pod)
		}
		d := c.Decide(p, rapid.SampledFrom([]string{"/run/default", "/run/own", "/run/pods/x"}).Draw(t, "socket"))
		if strayed := registered && (place.Pod == "" || place.Pod != pod.UID); strayed && d.Reason != reason.PodMismatch {
			t.Fatalf("%v in %q: %v %q", pod, place.Pod, d.Service, d.Reason)
		}
		if d.Service != nil && (len(d.Service.Pods) > 0) != registered {
			t.Fatalf("%v gets %v", registered, d.Service)
		}
	})
}
