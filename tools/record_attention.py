"""Records what attention allocates and which backend torch chooses, for crates/tonnage-sim/tests/attention.rs (torch 2.11.0).

  record_attention.py calls GPU OUT    one JSON line a case of that card -> part of tests/fixtures/attention.jsonl
  record_attention.py choice GPU OUT   answers of torch._fused_sdp_choice
  record_attention.py table OUT N A.json B.json ...   N of the answers as tests/fixtures/attention_choice.txt, one letter a card

Runs over a stand-in CUDA runtime that answers as card GPU (a100, h100, t4, rtx4090; for the choice also b200 and rtx5090), or on the card.
"""
import gc, json, random, sys
import torch
import torch.nn.functional as F
DT={'f32':torch.float32,'bf16':torch.bfloat16,'f16':torch.float16,'bool':torch.bool}
def make(B,H,S,d,dt,layout):
    if layout=='bshd': return torch.empty(B,S,H,d,dtype=dt,device='cuda').transpose(1,2)
    return torch.empty(B,H,S,d,dtype=dt,device='cuda')
def run(c):
    dt=DT[c['dtype']];B,H,K,S,d=c['B'],c['H'],c.get('K',c['H']),c['S'],c['d'];T=c.get('T',S);lay=c.get('layout','bshd')
    torch.mm(torch.ones(8,8,device='cuda',dtype=torch.float32,requires_grad=True),torch.ones(8,8,device='cuda')).sum().backward()
    rg=c.get('grad',True)
    q=make(B,H,S,d,dt,lay).requires_grad_(rg);k=make(B,K,T,d,dt,lay).requires_grad_(rg);v=make(B,K,T,d,dt,lay).requires_grad_(rg)
    m=None
    if c.get('mask'):
        mc=c['mask'];m=torch.ones(mc['shape'],dtype=DT[mc['dtype']],device='cuda')
        if mc.get('row'): m=torch.ones(mc['shape'][:-1]+[mc['row']],dtype=DT[mc['dtype']],device='cuda')[...,:mc['shape'][-1]]
        if mc.get('expand'): m=m.expand(mc['expand'])
    if m is not None and c['mask'].get('grad'): m.requires_grad_()
    g=make(B,H,S,d,dt if not c.get('amp') else DT[c['amp']],c.get('glayout','bshd'))
    gc.collect()
    torch.cuda.memory._record_memory_history(enabled='all',context=None,max_entries=100000)
    def body():
        with torch.autocast('cuda',dtype=DT[c['amp']] if c.get('amp') else None,enabled=bool(c.get('amp'))):
            o=F.scaled_dot_product_attention(q,k,v,attn_mask=m,dropout_p=c.get('p',0.0),is_causal=c.get('causal',False),enable_gqa=c.get('gqa',False))
        st=list(o.stride())
        if rg: o.backward(g)
        else: del o

        return st
    st=body()
    tr=torch.cuda.memory._snapshot()['device_traces'][0]
    torch.cuda.memory._record_memory_history(enabled=None)
    ids={};ev=[];n=0;ops=[]
    for t in tr:
        if t['action']=='alloc': ids[t['addr']]=n; n+=1; ev.append(t['size']); ops.append(t.get('user_metadata',''))
        elif t['action']=='free_completed':
            if t['addr'] in ids: i=ids.pop(t['addr']); ev.append(-1-i); ops.append(t.get('user_metadata',''))
    return dict(c,out_strides=st,events=ev,grads=[list(x.grad.stride()) if x.grad is not None else None for x in (q,k,v)])

C=[]
def c(name,gpu='a100',dtype='bf16',B=2,H=4,S=512,d=64,**k): C.append(dict(name=name,gpu=gpu,dtype=dtype,B=B,H=H,S=S,d=d,**k))
for S in (512,150,1000):
    c(f'flash-s{S}',S=S,causal=True)
c('flash-d128',d=128,causal=True); c('flash-d12',d=12,causal=True); c('flash-d80',d=80,S=150)
c('flash-d192',d=192,B=1); c('flash-d256',d=256,B=1)
c('flash-gqa',K=2,gqa=True,causal=True); c('flash-gqa-d128-s150',K=1,d=128,S=150,gqa=True,causal=True); c('flash-gqa-d12',K=2,d=12,gqa=True)
c('flash-drop',p=0.1,causal=True); c('flash-cross',S=150,T=70)
c('flash-bhsd',layout='bhsd'); c('flash-bhsd-g',layout='bhsd',glayout='bhsd',S=150)
c('flash-nograd',grad=False,causal=True); c('flash-decode',grad=False,S=1,T=1050,B=8,H=12,K=2,gqa=True,d=128); c('flash-decode-mha',grad=False,S=1,T=4000,B=1,H=12,d=64); c('flash-decode-gqa1',grad=False,S=1,T=40,B=1,H=12,K=2,gqa=True,d=128)
c('flash-amp',dtype='f32',amp='bf16',causal=True)
c('flash-short',S=64,T=700,B=1,H=2,grad=False); c('flash-short-train',S=64,T=700,B=1,H=2)
c('flash-4090',gpu='rtx4090',causal=True); c('flash-4090-d256',gpu='rtx4090',d=256,B=1)
for S in (512,150,1000): c(f'eff-s{S}',dtype='f32',S=S,causal=True)
c('eff-d128',dtype='f32',d=128); c('eff-d80',dtype='f32',d=80); c('eff-d32',dtype='f32',d=32,S=150); c('eff-d12',dtype='f32',d=12)
c('eff-drop',dtype='f32',p=0.1); c('eff-cross',dtype='f32',S=150,T=70); c('eff-long-k',dtype='f32',S=70,T=1500,B=1,H=1)
c('eff-B1H1',dtype='f32',S=2000,B=1,H=1)
c('eff-bhsd',dtype='f32',layout='bhsd'); c('eff-bhsd-g',dtype='f32',layout='bhsd',glayout='bhsd',S=150)
c('eff-nograd',dtype='f32',grad=False)
M=lambda dt,*s,**k: dict(dtype=dt,shape=s,**k)
c('eff-mask',dtype='f32',mask=M('f32',2,1,512,512)); c('eff-mask-s150',dtype='f32',S=150,mask=M('f32',2,1,150,150))
c('eff-mask-bf16-s150',S=150,mask=M('bf16',2,1,150,150)); c('eff-mask-bf16',mask=M('bf16',2,1,512,512)); c('eff-mask-bool',mask=M('bool',2,1,512,512)); c('eff-mask-bool-exp',mask=M('bool',2,1,1,512,expand=[2,1,512,512])); c('eff-mask-bool-s150',S=150,mask=M('bool',2,1,150,150))
c('eff-mask-2d-s150',S=150,mask=M('bf16',150,150)); c('eff-mask-amp-f32',dtype='f32',amp='bf16',mask=M('f32',2,1,512,512)); c('eff-mask-drop',mask=M('bf16',2,1,512,512),p=0.1); c('eff-mask-bf16-d128-s150',S=150,d=128,mask=M('bf16',2,1,150,150))
c('eff-mask-s152',dtype='bf16',S=152,mask=M('bf16',2,1,152,152)); c('eff-mask-4090',gpu='rtx4090',dtype='bf16',S=150,mask=M('bf16',2,1,150,150)); c('eff-d256',dtype='f32',d=256,B=1)
for S in (512,150): c(f'eff-t4-s{S}',gpu='t4',dtype='f32',S=S); c(f'eff-t4-f16-s{S}',gpu='t4',dtype='f16',S=S,causal=True)
c('eff-t4-mask',gpu='t4',dtype='f32',S=150,mask=M('f32',2,1,150,150)); c('eff-t4-d128',gpu='t4',dtype='f16',d=128)
c('eff-4090',gpu='rtx4090',dtype='f32',S=150); c('eff-4090-d128',gpu='rtx4090',dtype='f32',S=150,d=128); c('eff-h100',gpu='h100',dtype='f32',S=150); c('eff-h100-d128',gpu='h100',dtype='f32',d=128,S=1000)
c('math-gqa',dtype='f32',K=2,gqa=True,causal=True); c('math-gqa-drop',dtype='f32',K=2,gqa=True,p=0.1,S=150); c('math-gqa-mask',dtype='f32',K=2,gqa=True,mask=M('f32',2,1,512,512)); c('math-gqa-boolmask',dtype='f32',K=2,gqa=True,mask=M('bool',2,1,512,512))
c('math-bf16-gqa-mask',K=2,gqa=True,mask=M('bf16',2,1,512,512)); c('math-d12-mask',d=12,mask=M('bf16',2,1,512,512)); c('math-gqa-bhsd',dtype='f32',K=2,gqa=True,layout='bhsd'); c('math-gqa-nograd',dtype='f32',K=2,gqa=True,causal=True,grad=False)
c('math-gqa-nodec',dtype='f32',K=2,gqa=True,grad=False,S=1,T=40); c('math-mqa',dtype='f32',K=1,gqa=True,causal=True)
c('math-t4-bf16',gpu='t4',causal=True); c('math-t4-bf16-gqa',gpu='t4',K=2,gqa=True,causal=True,S=150); c('math-t4-f16-gqa',gpu='t4',dtype='f16',K=2,gqa=True); c('math-t4-amp',gpu='t4',dtype='f32',amp='bf16'); c('math-amp-gqa-mask',dtype='f32',amp='bf16',K=2,gqa=True,mask=M('f32',2,1,512,512))
g='h100'
for S in (512,150,1000): c(f'cudnn-s{S}',gpu=g,S=S,causal=True)
c('cudnn-gqa',gpu=g,K=2,gqa=True,causal=True); c('cudnn-mask',gpu=g,mask=M('bf16',2,1,512,512)); c('cudnn-mask-bool-s150',gpu=g,S=150,mask=M('bool',2,1,150,150)); c('cudnn-mask-s150',gpu=g,S=150,mask=M('bf16',2,1,150,150)); c('cudnn-drop',gpu=g,p=0.125); c('cudnn-drop01',gpu=g,p=0.1); c('cudnn-nograd',gpu=g,grad=False,causal=True); c('cudnn-d128',gpu=g,d=128); c('cudnn-bhsd',gpu=g,layout='bhsd',glayout='bhsd'); c('cudnn-amp',gpu=g,dtype='f32',amp='bf16'); c('cudnn-cross',gpu=g,S=150,T=70); c('cudnn-decode',gpu=g,grad=False,S=1,T=100,K=2,gqa=True)
c('h100-d12',gpu=g,d=12); c('h100-d12-mask',gpu=g,d=12,mask=M('bf16',2,1,512,512)); c('h100-d256',gpu=g,d=256,B=1); c('cudnn-mask-amp',gpu=g,dtype='f32',amp='bf16',mask=M('f32',2,1,512,512)); c('cudnn-gqa-mask',gpu=g,K=2,gqa=True,mask=M('bf16',2,1,512,512));c('cudnn-b200',gpu=g,S=200,d=96)
c('cudnn-bshd-gbhsd',gpu=g,glayout='bhsd',S=150); c('cudnn-maskgrad-dummy',gpu=g,K=1,gqa=True,S=70,T=90)
c('eff-gbhsd',dtype='f32',glayout='bhsd'); c('flash-gbhsd',glayout='bhsd'); c('flash-d160',d=160,S=150); c('flash-d224',d=224,S=150,B=1)
c('eff-bf16-d160',d=160,S=150,mask=M('bf16',2,1,150,150)); c('eff-bf16-d80',d=80,S=150,mask=M('bf16',2,1,150,150)); c('eff-bf16-d96-drop',d=96,S=150,mask=M('bf16',2,1,150,150),p=0.1)
c('eff-mask-s152-row160',S=152,mask=M('bf16',2,1,152,152)|dict(row=160)); c('eff-mask-s152-row156',S=152,mask=M('bf16',2,1,152,152)|dict(row=156))
c('eff-mask-1d-s150',S=150,mask=M('f32' if 0 else 'bf16',2,1,1,150,expand=[2,1,150,150]))
c('eff-mask-nograd',S=150,mask=M('bf16',2,1,150,150),grad=False)
c('math-drop-mask',d=12,S=150,mask=M('bool',2,1,150,150),p=0.1)
c('eff-maskgrad',S=512,mask=M('bf16',1,4,512,512,grad=True)); c('eff-maskgrad-s150',S=150,dtype='f32',mask=M('f32',1,4,150,150,grad=True)); c('eff-maskgrad-full',S=70,dtype='f32',mask=M('f32',2,4,70,70,grad=True))

N={0:'M',1:'F',2:'E',3:'C'}
rows=[]
def go(dt,d,K,S,T,mask,causal,p,gqa,grad,lay,H=4,B=2,dv=None):
    dv=dv or d
    mk=(lambda h,s,e:torch.empty(B,s,h,e,dtype=DT[dt],device='cuda').transpose(1,2)) if lay=='bshd' else (lambda h,s,e:torch.empty(B,h,s,e,dtype=DT[dt],device='cuda'))
    if lay=='dstride': mk=lambda h,s,e:torch.empty(B,h,e,s,dtype=DT[dt],device='cuda').transpose(2,3)
    q=mk(H,S,d).requires_grad_(grad);k=mk(K,T,d).requires_grad_(grad);v=mk(K,T,dv).requires_grad_(grad)
    m=None
    if mask=='f': m=torch.zeros(B,1,S,T,dtype=DT[dt],device='cuda')
    if mask=='b': m=torch.ones(B,1,S,T,dtype=torch.bool,device='cuda')
    if mask=='2': m=torch.zeros(S,T,dtype=DT[dt],device='cuda')
    if mask=='g': m=torch.zeros(B,H,S,T,dtype=DT[dt],device='cuda',requires_grad=True)
    try: c=N[torch._fused_sdp_choice(q,k,v,m,p,causal,enable_gqa=gqa)]
    except RuntimeError as e: c='x'
    rows.append([dt,B,H,K,S,T,d,dv,mask,causal,p,gqa,grad,lay,c])

def choice():
    for dt in ('f32','bf16','f16'):
      for d in (12,20,64,80,96,128,136,160,192,200,224,232,256,264,512):
        for grad in (True,False):
          for p in (0.0,0.1): go(dt,d,4,64,64,'',True,p,False,grad,'bshd')
          go(dt,d,4,64,64,'f',False,0.0,False,grad,'bshd'); go(dt,d,2,64,64,'',True,0.0,True,grad,'bshd'); go(dt,d,2,64,64,'f',False,0.0,True,grad,'bshd')
      for d in (64,128):
        for grad in (True,False):
          for S,T in ((1,1),(1,2),(1,100),(64,1),(64,100),(100,64),(150,150)):
            for causal in (False,True):
              for mask in ('','f','b','2','g'):
                if causal and mask: continue
                for K,gqa in ((4,False),(4,True),(2,True),(1,True)):
                  go(dt,d,K,S,T,mask,causal,0.0,gqa,grad,'bshd')
            go(dt,d,4,S,T,'',False,0.1,False,grad,'bshd'); go(dt,d,4,S,T,'',False,0.125,False,grad,'bhsd'); go(dt,d,4,S,T,'',False,0.0,False,grad,'dstride')
      for d,dv in ((192,128),(64,128),(128,64),(96,64),(72,36)):
        for grad in (True,False):
          for mask in ('','f'): go(dt,d,4,64,64,mask,False,0.0,False,grad,'bshd',dv=dv)
    return rows

def calls(gpu, path):
    with open(path,'w') as out:
        for c in (c for c in C if c['gpu']==gpu):
            r=run(c); e=r['events']
            if c.get('amp') and e[:2]==[2,-1]: e=[x if x>=0 else x+1 for x in e[2:]] # torch.autocast's own probe of bf16
            r['events']=' '.join(str(x) if x>=0 else '#%d'%(-1-x) for x in e); r.pop('grads')
            out.write(json.dumps(r,separators=(',',':'))+'\n')

def table(path, n, files):
    cols=[json.load(open(f)) for f in files]; random.seed(1)
    with open(path,'w') as out:
        out.write('# dtype batch heads kv_heads q_len kv_len d d_v mask causal dropout gqa grad layout backend on '+' '.join(c['gpu'] for c in cols)+'\n')
        for i in sorted(random.sample(range(len(cols[0]['rows'])),n)):
            w=cols[0]['rows'][i][:-1]
            w=[int(x) if isinstance(x,bool) else (x or '-') if isinstance(x,str) else x for x in w]
            out.write(' '.join(map(str,w))+' '+''.join(c['rows'][i][-1] for c in cols)+'\n')

if __name__=='__main__':
    a=sys.argv[1:]
    if a[0]=='calls': calls(a[1],a[2])
    elif a[0]=='choice': json.dump({'gpu':a[1],'rows':choice()},open(a[2],'w'))
    else: table(a[1],int(a[2]),a[3:])
