//! Why something is kept.

use mica_layerdb::{ChainId, Error, Explained, Keeper};

use super::shop::{Shop, object};

fn only(shop: &Shop, text: &str) -> Explained {
    let mut explanation = shop.store.explain(text).unwrap().unwrap();
    assert_eq!(explanation.found.len(), 1, "{explanation:?}");
    explanation.found.remove(0)
}

#[test]
fn explain_of_an_object_names_paths_layers_and_who_keeps_them() {
    let shop = Shop::new();
    let layer = shop.ingest("one", &[1, 2]);
    let other = shop.ingest("other", &[1]);
    shop.put_image("app", &[layer], [2, 3]);
    shop.pin("snapshot/7", &[layer]);
    shop.pin("mount/99", &[layer]);
    let id = object(1);
    for text in [id.to_string(), id.hex(), id.hex()[..12].to_owned()] {
        let Explained::Object { file, mut layers, kept, .. } = only(&shop, &text) else { panic!() };
        assert!(kept);
        assert_eq!(file.unwrap().bytes, 6000);
        layers.sort_by_key(|named| named.diff_id != layer);
        assert_eq!(layers[0].paths, ["/data/1"]);
        let keepers = [Keeper::Image("app".into()), Keeper::Snapshot("7".into()), Keeper::Mount("99".into())];
        assert_eq!(layers[0].keepers, keepers);
        assert_eq!((layers[1].diff_id, layers[1].kept, layers[1].keepers.len()), (other, false, 0));
    }
    let Explained::Object { manifest_of, kept, .. } = only(&shop, &object(2).hex()) else { panic!() };
    assert_eq!((manifest_of, kept), (vec!["app".to_owned()], true));
    // An image names it, and it was never there.
    let Explained::Object { file, config_of, .. } = only(&shop, &object(3).hex()) else { panic!() };
    assert_eq!((file, config_of), (None, vec!["app".to_owned()]));
}

#[test]
fn explain_of_what_nothing_needs_says_so_and_it_goes_at_the_next_collection() {
    let shop = Shop::new();
    let layer = shop.ingest("one", &[1]);
    let top = shop.ingest("two", &[2]);
    shop.store.chain(&[layer, top]).unwrap();
    let shop = shop.reopen();
    let chain = ChainId::of(&[layer, top]).unwrap();
    let all = [object(1).hex(), layer.hex(), chain.hex()];
    for text in &all {
        assert!(!only(&shop, text).is_kept(), "{text}");
    }
    shop.gc();
    for text in &all {
        assert_eq!(shop.store.explain(text).unwrap(), None);
    }
}

#[test]
fn explain_of_layers_and_chains_tells_who_keeps_them() {
    let shop = Shop::new();
    let (layer, hold) = shop.ingest_held("one", &[1]);
    let Explained::Layer { keepers, kept, .. } = only(&shop, &layer.hex()) else { panic!() };
    assert_eq!((keepers, kept), (vec![Keeper::Work], true));
    let top = shop.ingest("two", &[2]);
    shop.put_image("app", &[layer, top], [1, 2]);
    shop.store.chain(&[layer, top]).unwrap();
    drop(hold);
    let shop = shop.reopen();
    let Explained::Layer { keepers, .. } = only(&shop, &layer.to_string()) else { panic!() };
    assert_eq!(keepers, [Keeper::Image("app".into())]);
    let Explained::Chain { layers, keepers, kept } = only(&shop, &ChainId::of(&[layer, top]).unwrap().hex()) else {
        panic!()
    };
    assert_eq!((layers, keepers, kept), (vec![layer, top], vec![Keeper::Image("app".into())], true));
    // The chain of one layer has the layer's digest.
    shop.store.chain(&[layer]).unwrap();
    assert_eq!(shop.store.explain(&layer.hex()).unwrap().unwrap().found.len(), 2);
}

#[test]
fn explain_of_a_prefix_of_several_names_them_and_of_no_digest_is_refused() {
    let shop = Shop::new();
    // Two contents whose digests begin with the same four digits.
    let mut seen = std::collections::HashMap::new();
    let (one, other) = (0..)
        .find_map(|number| seen.insert(object(number).hex()[..4].to_owned(), number).map(|earlier| (earlier, number)))
        .unwrap();
    shop.ingest("one", &[one, other]);
    let error = shop.store.explain(&object(one).hex()[..4]).unwrap_err();
    assert!(matches!(&error, Error::Ambiguous { matches, .. } if matches.len() == 2), "{error}");
    for text in ["", "abc", "nothing", "sha256:", "../../etc"] {
        assert!(matches!(shop.store.explain(text), Err(Error::InvalidDigest { .. })), "{text}");
    }
}
