package conf

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
)

// A peer is a pod, NAMESPACE/SERVICEACCOUNT/POD, if it has come through the socket that was
// registered for that pod, and the kernel says that it is in the pod with that UID. Each is worth
// little without the other: a socket may be shown to others, and a UID says nothing of an account.
var podRule = rule{
	applies:  func(s *Service) bool { return len(s.Pods) > 0 },
	evidence: peer.EvidencePlace,
	reasons:  []reason.ID{reason.PodMismatch},
	check: func(s *Service, p *peer.Info) reason.ID {
		pod, known := p.Registered.Get()
		if known && !strayed(p) && slices.ContainsFunc(s.Pods, func(pattern string) bool { return podMatches(pattern, &pod) }) {
			return ""
		}
		return reason.PodMismatch
	},
	text: func(s *Service, p *peer.Info, _ reason.ID) string {
		is := "is for the pod " + strings.Join(s.Pods, ", ")
		pod, known := p.Registered.Get()
		if !known {
			return is + ", and the caller has not come through a pod's socket"
		}
		return is + ", not " + plain(pod.String())
	},
}

// strayed reports whether a peer has come through the socket of a pod that it is not known to be in.
func strayed(p *peer.Info) bool {
	pod, registered := p.Registered.Get()
	if !registered {
		return false
	}
	place, _ := p.Place.Get()
	return place.Pod == "" || place.Pod != pod.UID
}

// straying says where such a peer is instead.
func straying(p *peer.Info) string {
	pod, _ := p.Registered.Get()
	text := fmt.Sprintf("the caller uses the socket of pod %s (%s), and ", plain(pod.String()), pod.UID)
	switch place, known := p.Place.Get(); {
	case !known:
		return text + "in which pod it is, is not known"
	case place.Pod == "":
		return text + "is in no pod"
	default:
		return text + "is in pod " + place.Pod
	}
}

// podMatches reports whether a pod is one of a pattern, component by component.
func podMatches(pattern string, pod *peer.Pod) bool {
	for _, name := range [...]string{pod.Namespace, pod.ServiceAccount, pod.Name} {
		var part string
		part, pattern, _ = strings.Cut(pattern, "/")
		if ok, _ := path.Match(part, name); !ok || name == "" {
			return false
		}
	}
	return true
}

// pods reads the patterns of podRule.
var pods = kind[[]string]{
	name: "NAMESPACE/SERVICEACCOUNT/POD, with * and ?",
	read: func(r *reader, v value, dst *[]string) {
		const expected = "NAMESPACE/SERVICEACCOUNT/POD is expected, as in shop/web/* or shop/web/web-?"
		parts := strings.Split(v.text, "/")
		var bad error
		for _, part := range parts {
			if _, err := path.Match(part, ""); err != nil {
				bad = err
			}
		}
		switch {
		case v.empty(r):
		case strings.ContainsAny(v.text, " ,"):
			v.bad(r, fmt.Sprintf("has a %q in it", v.text[strings.IndexAny(v.text, " ,")]), expected, "write one a line")
		case len(parts) != 3 || slices.Contains(parts, ""):
			v.bad(r, "is not three names with a / between them", expected, "write * for a name that may be any")
		case bad != nil:
			v.bad(r, "is no pattern", expected, `write \ before a [ that stands for itself`)
		case slices.Contains(*dst, v.text):
			v.bad(r, "repeats a line", "each once is expected", "remove one of the lines")
		default:
			*dst = append(*dst, v.text)
		}
	},
	write: func(list []string) []string { return list },
}
